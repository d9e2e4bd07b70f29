"""What people who convert are told of a file beside its numbers."""

import re
from collections.abc import Iterable, Sequence

from q4run.models.parts import Attention


def ignored_by_llama_cpp(keys: Iterable[str]) -> list[str]:
    """Returns a line about keys that llama.cpp takes no notice of, or none where there are none."""
    listed = ", ".join(keys)
    if not listed:
        return []
    return [f"llama.cpp ignores {listed}: its results with this file differ from q4run's"]


def not_loaded_by_llama_cpp(reason: str, applies: bool) -> list[str]:
    """Returns a line where llama.cpp cannot load the file for this reason, if that ``applies``."""
    return [f"llama.cpp does not load this file: {reason}"] if applies else []


def notes_on_heads(attention: Attention) -> list[str]:
    """Returns a line where heads share keys in a family whose keys llama.cpp takes to be as wide as
    its queries."""
    shares = attention.n_head_kv != attention.n_head
    return not_loaded_by_llama_cpp("heads of its kind share no keys there", shares)


def left_out_notes(names: Sequence[str], *, mtp: str = "", vision: str = "") -> list[str]:
    """Returns a line for each kind of tensors among ``names`` that were left out; ``mtp`` and
    ``vision`` are patterns, empty for what the family does not have."""
    notes = []
    n_mtp = sum(bool(mtp and re.search(mtp, name)) for name in names)
    n_vision = sum(bool(vision and re.search(vision, name)) for name in names)
    if n_mtp:
        notes.append(
            f"{n_mtp} tensors that predict further tokens (MTP) were left out: decoding does not"
            " need them"
        )
    if n_vision:
        notes.append(f"{n_vision} vision tensors were left out: the file understands text only")
    return notes
