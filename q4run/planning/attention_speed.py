"""How fast attention is with a model's heads: over the keys of a decoded token, and in prompts."""

from dataclasses import dataclass

import numpy as np

from q4run.kernels.attention.attend import NO_SINKS, attend
from q4run.kernels.attention.kinds import find_kind
from q4run.kernels.attention.rows import NO_WINDOW, KVRows
from q4run.kernels.threads.pool import Pool
from q4run.models.parts import Attention
from q4run.planning.timing import median_seconds

_KEYS = 1024
_PROMPT_TOKENS = 512
_CACHED_BYTES = 64 << 20  # of several layers' keys and values: above the caches
_MOST_LAYERS = 64
_ROUNDS = 5


@dataclass(frozen=True)
class AttentionSpeed:
    """Of one model's heads, per second.

    decode: bytes of keys and values that all threads take in for one token; prompt: operations of
    one thread in a prompt, four for each pair of a query and a key and each channel.
    """

    decode: float
    prompt: float


def measure_attention(part: Attention, kv_type: str, pool: Pool, n_threads: int) -> AttentionSpeed:
    """Takes some tenths of a second: medians of a few rounds."""
    kind = find_kind(kv_type)
    layer_bytes = part.n_head_kv * _KEYS * sum(map(kind.row_bytes, (part.key_dim, part.value_dim)))
    n_layers = min(_MOST_LAYERS, -(-_CACHED_BYTES // layer_bytes))

    def rows(dim: int) -> KVRows:
        return KVRows(kind, np.zeros((part.n_head_kv, _KEYS, kind.row_length(dim)), kind.dtype))

    layers = [(rows(part.key_dim), rows(part.value_dim)) for _ in range(n_layers)]
    q = np.ones((_PROMPT_TOKENS, part.n_head, part.key_dim), np.float32)
    out = np.empty((_PROMPT_TOKENS, part.n_head, part.value_dim), np.float32)
    scale = np.float32(part.key_dim**-0.5)

    def decode() -> None:
        for keys, values in layers:
            attend(pool, q[:1], keys, values, _KEYS, scale, NO_WINDOW, NO_SINKS, out[:1])

    def prompt() -> None:
        attend(pool, q, *layers[0], 1, scale, NO_WINDOW, NO_SINKS, out)

    decode()  # compiles, and touches the memory
    operations = (
        2 * (part.q_width + part.attended_width) * _PROMPT_TOKENS * (_PROMPT_TOKENS + 1) // 2
    )
    return AttentionSpeed(
        decode=n_layers * layer_bytes / median_seconds(decode, _ROUNDS),
        prompt=operations / median_seconds(prompt, _ROUNDS) / n_threads,
    )
