"""What a calibrating pass takes of memory beside the residual stream."""

from q4run.convert.calibration.attention import N_QUERIES
from q4run.convert.calibration.forward import N_BATCH
from q4run.models.config import ModelConfig
from q4run.models.parts import Attention, Experts, FeedForward

# Reading a matrix takes its stored form as well, and a band of it on its way to float32.
_READ_BYTES = 64 * 2**20


def working_bytes(config: ModelConfig, context: int) -> int:
    """What a pass takes beside the residual stream: the weights of half a layer, and its scratch
    for one window or batch."""
    attention = max(
        _attention_values(layer.attention, config.n_embd, context) for layer in config.layers
    )
    n_ff = max(n for layer in config.layers for n in widths(layer.feed_forward))
    feed_forward = 3 * config.n_embd * n_ff + N_BATCH * (4 * config.n_embd + 8 * n_ff)
    return 4 * max(attention, feed_forward) + _READ_BYTES


def _attention_values(part: Attention, n_embd: int, context: int) -> int:
    """Of four matrices, of a window's vectors, and of the scores of heads that share their keys."""
    width = part.q_width + part.k_width
    scores = part.n_head // part.n_head_kv * N_QUERIES * context
    return 2 * n_embd * width + context * (4 * n_embd + 7 * width) + 2 * scores


def widths(part: FeedForward) -> list[int]:
    """The values between gate and down, of each feed-forward of a layer."""
    if isinstance(part, Experts):
        return [part.n_ff, part.shared.n_ff if part.shared else 0]
    return [part.n_ff]
