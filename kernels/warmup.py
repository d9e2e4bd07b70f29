"""Compiling everything a model will use before the first token, so that it can be shown."""

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np

from q4run.kernels.attention.heads import NO_ANGLES, NO_TEMPERATURES
from q4run.kernels.attention.kinds.base import KVKind
from q4run.kernels.attention.layer import ATTENTION, attention_layer
from q4run.kernels.attention.rows import KVRows
from q4run.kernels.dense_layer import DENSE, dense_layer
from q4run.kernels.experts import MIXTURE, combine, moe_layer, route, run_experts
from q4run.kernels.feed_forward import FEED_FORWARD
from q4run.kernels.formats import Format, q8_0
from q4run.kernels.head import output_head
from q4run.kernels.products.multiply import multiply_address
from q4run.kernels.products.products import PRODUCT
from q4run.kernels.products.strips import interleave
from q4run.kernels.sampling.choose import choose
from q4run.kernels.sampling.weights import weight_bits
from q4run.kernels.threads.pool import ALONE, ThreadPool

_F32 = np.empty(0, np.float32)
_I64 = np.empty(0, np.int64)
_INT8 = (np.empty(0, np.int8), _F32, np.empty(0, np.int32))
_NO_TOKENS = np.empty((0, 8), np.float32)
_EPS = np.float32(1)


def warm_up(
    formats: Iterable[Format], kind: KVKind, progress: Callable[[int, int], None] | None = None
) -> None:
    """Calls every kernel once on next to nothing: compiled the first time, else loaded from disk.

    ``progress`` is called with (steps done, steps in all).
    """
    steps = warm_up_steps(formats, kind)
    for done, step in enumerate(steps):
        step()
        if progress:
            progress(done + 1, len(steps))


def warm_up_steps(formats: Iterable[Format], kind: KVKind) -> list[Callable[[], None]]:
    """What ``warm_up`` does, in steps that need not each other; the longest to compile first."""
    own = [partial(_format, fmt) for fmt in formats]
    return [partial(_attention, kind), _experts, *own, _feed_forwards, _sampling, _threads]


def _format(fmt: Format) -> None:
    multiply_address(fmt)
    if fmt is q8_0.FORMAT:  # what types without kernels become
        fmt.quantize(np.zeros((1, fmt.block_size), np.float32))
    rows: np.ndarray = np.empty((0, fmt.type_size), np.uint8)
    interleave(fmt, rows, rows)


def _attention(kind: KVKind) -> None:
    layer = np.zeros(1, ATTENTION)
    layer["heads"]["n_head"] = layer["heads"]["n_head_kv"] = 1
    cache = KVRows(kind, np.zeros((1, 1, kind.row_length(8)), kind.dtype))
    attention_layer(ALONE, _NO_TOKENS, layer, NO_ANGLES, NO_TEMPERATURES, cache, cache, 0)


def _feed_forwards() -> None:
    dense_layer(ALONE, _NO_TOKENS, np.zeros(1, DENSE), np.zeros(1, FEED_FORWARD))
    logits = np.empty((0, 1), np.float32)
    output_head(ALONE, _NO_TOKENS, _F32, _EPS, np.zeros(1, PRODUCT), _F32, _INT8, logits)


def _experts() -> None:
    places, mixture = np.zeros(2, np.int64), np.zeros(1, MIXTURE)
    mixture["experts"] = mixture["first_row"] = places.ctypes.data
    jobs = np.zeros(1, FEED_FORWARD)
    route(ALONE, _NO_TOKENS, mixture)
    moe_layer(ALONE, _NO_TOKENS, mixture, _I64, jobs)
    run_experts(ALONE, 0, mixture, False, _I64, _I64, jobs)
    combine(ALONE, _NO_TOKENS, mixture)


def _sampling() -> None:
    """As the sampler calls it, types and all."""
    logits, ids, weights = np.zeros(1, np.float32), np.zeros(1, np.int32), np.zeros(1, np.int64)
    zero = np.float32(0)
    choose(logits, zero, 0, 1.0, zero, 1.0, 0.0, weight_bits(1), ids, weights)


def _threads() -> None:
    with ThreadPool(2):
        pass
