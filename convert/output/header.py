"""The header of a GGUF file that is written: magic, counts, metadata, tensor directory."""

import io
import struct
from collections.abc import Iterable, Mapping
from typing import NamedTuple, cast

import gguf
import numpy as np
from gguf.gguf_writer import GGUFValue, WriterState

from q4run.gguf_file.borders import PADDING_KEY, up_to_border

_LENGTH = struct.Struct("<Q")


class Entry(NamedTuple):
    """A tensor in the directory; its shape is in numpy's order."""

    name: str
    shape: tuple[int, ...]
    n_bytes: int
    ggml_type: gguf.GGMLQuantizationType


def make_header(
    architecture: str, values: Mapping[str, GGUFValue], entries: Iterable[Entry]
) -> bytes:
    """Returns all that stands before the tensors, which ends on a border.

    Tensors follow in the order of ``entries``, each padded to GGUF's default alignment.
    """
    writer = gguf.GGUFWriter(None, architecture)
    writer.kv_data[0].update(values)
    writer.add_key_value(PADDING_KEY, "", gguf.GGUFValueType.STRING)
    for entry in entries:
        name, shape, n_bytes, ggml_type = entry
        writer.add_tensor_info(name, shape, np.dtype(np.float32), n_bytes, ggml_type)
    # The package writes to files that it opens itself; given one, it takes that.
    buffer = io.BytesIO()
    writer.fout = [cast(io.BufferedWriter, buffer)]
    writer.state = WriterState.EMPTY
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    n_metadata = buffer.tell()
    writer.write_ti_data_to_file()
    header = buffer.getvalue()
    # The last key is the padding's: the length of its text, still 0, ends the metadata.
    n_missing = up_to_border(len(header)) - len(header)
    before = header[: n_metadata - _LENGTH.size]
    return before + _LENGTH.pack(n_missing) + b" " * n_missing + header[n_metadata:]
