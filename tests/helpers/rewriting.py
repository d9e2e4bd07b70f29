"""The same GGUF file with other tensors, or other values of its keys."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file that has floats alone, by name."""
    return {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(path).tensors}


def read_facts(path: Path) -> dict[str, Any]:
    """The values of a file's keys, without what stands before the first dot."""
    fields = gguf.GGUFReader(path).fields.items()
    return {name.partition(".")[2]: field.contents() for name, field in fields}


def rewrite(source: Path, target: Path, arrays: Mapping[str, np.ndarray], **facts: Any) -> None:
    """Writes the metadata of ``source`` with these tensors; ``facts``: other values of keys of its
    architecture, a dot being two underscores."""
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    changed = {f"{architecture}.{key.replace('__', '.')}": v for key, v in facts.items()}
    writer = gguf.GGUFWriter(target, architecture)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.alignment"):
            continue
        sub_type = field.types[-1] if len(field.types) > 1 else None
        value = changed.get(name, field.contents())
        writer.add_key_value(name, value, field.types[0], sub_type)
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
