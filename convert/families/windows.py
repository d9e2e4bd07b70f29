"""Sliding windows that checkpoints declare and their GGUF cannot have."""

from q4run.convert.config import Config
from q4run.errors import UnsupportedError


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
