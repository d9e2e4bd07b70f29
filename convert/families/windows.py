"""Sliding windows: which layers have them, and those that the GGUF cannot have."""

import gguf

from q4run.convert.config import Config
from q4run.errors import FormatError, UnsupportedError


def refuse_sliding_window(config: Config) -> None:
    """Raises UnsupportedError for a window shorter than the longest context; others change
    nothing."""
    window = config.integer("sliding_window", 0, low=0)
    if 0 < window < config.integer("max_position_embeddings"):
        raise UnsupportedError(f"{config.where}: sliding_window ({window}) is not supported")


def refuse_used_window(config: Config) -> None:
    """Raises UnsupportedError for a window that is told to be used, as Qwen's checkpoints do."""
    if config.flag("use_sliding_window", False) and "sliding_window" in config:
        raise UnsupportedError(f"{config.where}: use_sliding_window is not supported")


def refuse_window_layers(config: Config) -> None:
    """Raises UnsupportedError where ``layer_types`` names layers that do not see everything."""
    others = {str(kind) for kind in config.items("layer_types", str) or ()} - {"full_attention"}
    if others:
        raise UnsupportedError(
            f"{config.where}: layers of the type '{min(others)[:40]}' are not supported"
        )


def add_window_layers(metadata: gguf.GGUFWriter, config: Config, n_layer: int, period: int) -> None:
    """Writes the window and, where not all but every ``period``-th layer have it, which do.

    Raises UnsupportedError for layers of an unknown type, FormatError where the list has another
    length than the layers.
    """
    metadata.add_sliding_window(config.integer("sliding_window"))
    usual = [(i + 1) % period != 0 for i in range(n_layer)]
    kinds = config.items("layer_types", str)
    if kinds is None:
        return
    unknown = set(kinds) - {"sliding_attention", "full_attention"}
    if unknown:
        raise UnsupportedError(
            f"{config.where}: layers of the type '{min(unknown)[:40]}' are not supported"
        )
    if len(kinds) != n_layer:
        raise FormatError(
            f"{config.where}: layer_types has {len(kinds)} entries for {n_layer} layers"
        )
    has_window = [kind == "sliding_attention" for kind in kinds]
    if has_window != usual:
        metadata.add_sliding_window_pattern(has_window)
