"""Which layers rotate, in families where every n-th knows no positions (NoPE, arXiv:2501.18795)."""

from q4run.errors import FormatError
from q4run.gguf_file import GGUFFile

# A key of our own: 1 for each layer that rotates. llama.cpp takes the interval for granted.
ROPE_LAYERS = "attention.no_rope_layers"
INTERVAL = 4


def default_rope_layers(n_layer: int, interval: int = INTERVAL) -> list[int]:
    """Returns 0 for every ``interval``-th layer, which does not rotate, and 1 for the others."""
    return [int((i + 1) % interval != 0) for i in range(n_layer)]


def read_layer_flags(file: GGUFFile, key: str, n_layer: int, default: list[int]) -> list[int]:
    """Reads a list of one number for each layer; ``key`` without the architecture's prefix.

    Raises FormatError where it does not have one entry per layer.
    """
    flags = file.get_array(f"{file.architecture}.{key}", int, default)
    if len(flags) != n_layer:
        raise FormatError(
            f"{file.path}: {file.architecture}.{key} has {len(flags)} entries for {n_layer} layers"
        )
    return flags
