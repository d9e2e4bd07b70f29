"""The scratch memory of a pass: one block, allocated once, that all layers share."""

from typing import NamedTuple

import numpy as np

from q4run.kernels.formats import Format
from q4run.kernels.products.activations import GROUP, Int8Activations
from q4run.kernels.products.products import input_record
from q4run.machine.huge_pages import empty_bytes, give_back
from q4run.models.config import ModelConfig
from q4run.models.parts import Experts, FeedForward

_ALIGNMENT = 64

Int8Buffers = tuple[np.ndarray, np.ndarray, np.ndarray]

# For layers whose matrices take the activations as they are.
NO_INT8: Int8Buffers = (np.empty(0, np.int8), np.empty(0, np.float32), np.empty(0, np.int32))


class AttentionBuffers(NamedTuple):
    """Flat scratch memory for a batch; int8: q, scales and sums as ``Int8Activations`` has them."""

    normed: np.ndarray
    normed_int8: Int8Buffers
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    attended: np.ndarray
    attended_int8: Int8Buffers
    update: np.ndarray


class Routing(NamedTuple):
    """Scratch memory for what the router decided, as ``MIXTURE`` has it."""

    logits: np.ndarray
    chosen: np.ndarray
    weights: np.ndarray
    rows: np.ndarray
    experts: np.ndarray
    first_row: np.ndarray


class ExpertBuffers(NamedTuple):
    """Flat scratch memory for a batch; int8: q, scales and sums as ``Int8Activations`` has them."""

    normed: np.ndarray
    normed_int8: Int8Buffers
    input: np.ndarray  # the rows, grouped by expert
    input_int8: Int8Buffers
    hidden: np.ndarray
    hidden_int8: Int8Buffers
    up: np.ndarray
    output: np.ndarray
    update: np.ndarray


class Workspace:
    """Buffers for passes of at most ``n_batch`` tokens; shorter ones take less memory of them."""

    def __init__(self, config: ModelConfig, n_batch: int) -> None:
        self.n_batch = n_batch
        # Short passes touch the beginning of each buffer only: huge pages would be mostly idle.
        self._block = empty_bytes(workspace_bytes(config, n_batch), huge=False)
        arena = _Arena(self._block[-self._block.ctypes.data % _ALIGNMENT :])
        self.attention, self.experts, self.routing = _carve(arena, config, n_batch)

    def give_back(self) -> None:
        """Lets the system have the memory until a pass writes to it again."""
        give_back(self._block, 0, len(self._block))


def workspace_bytes(config: ModelConfig, n_batch: int) -> int:
    """What a ``Workspace`` takes."""
    arena = _Arena(None)
    _carve(arena, config, n_batch)
    return arena.most_used + _ALIGNMENT


class _Arena:
    """Hands out pieces of a block of memory; without a block it only counts."""

    def __init__(self, memory: np.ndarray | None) -> None:
        self._memory = memory
        self._used = 0
        self.most_used = 0

    def take(self, n_values: int, dtype: type = np.float32) -> np.ndarray:
        begin = self._used
        n_bytes = n_values * np.dtype(dtype).itemsize
        self._used += -(-n_bytes // _ALIGNMENT) * _ALIGNMENT
        self.most_used = max(self.most_used, self._used)
        if self._memory is None:
            return np.empty(0, dtype)
        return self._memory[begin : begin + n_bytes].view(dtype)

    def take_int8(self, n_values: int) -> Int8Buffers:
        """Room for the same values in int8, which takes whole groups of them."""
        n_groups = -(-n_values // GROUP)
        return (
            self.take(n_groups * GROUP, np.int8),
            self.take(n_groups),
            self.take(2 * n_groups, np.int32),
        )

    def mark(self) -> int:
        return self._used

    def reuse_from(self, mark: int) -> None:
        """What was taken since ``mark`` may be overwritten by what is taken from now on."""
        self._used = mark


def hidden_values(part: FeedForward, n_batch: int) -> int:
    """Values between gate and down of a layer's feed-forwards, the shared expert's last."""
    if not isinstance(part, Experts):
        return n_batch * part.n_ff
    n_shared = part.shared.n_ff if part.shared else 0
    return shared_begin(part, n_batch) + n_batch * n_shared


def shared_begin(part: Experts, n_batch: int) -> int:
    """Where the shared expert's values begin: whole groups after the routed experts'."""
    return -(-n_batch * part.n_expert_used * part.n_ff // GROUP) * GROUP


def _carve(
    arena: _Arena, config: ModelConfig, n_batch: int
) -> tuple[AttentionBuffers, ExpertBuffers, Routing]:
    n_embd = config.n_embd
    normed, normed_int8 = arena.take(n_batch * n_embd), arena.take_int8(n_batch * n_embd)
    update = arena.take(n_batch * n_embd)
    begin = arena.mark()

    attentions = [layer.attention for layer in config.layers]
    attended = n_batch * max(part.attended_width for part in attentions)
    attention = AttentionBuffers(
        normed=normed,
        normed_int8=normed_int8,
        q=arena.take(n_batch * max(part.q_width for part in attentions)),
        k=arena.take(n_batch * max(part.k_width for part in attentions)),
        v=arena.take(n_batch * max(part.v_width for part in attentions)),
        attended=arena.take(attended),
        attended_int8=arena.take_int8(attended),
        update=update,
    )

    # A layer's attention is over before its feed-forward begins.
    arena.reuse_from(begin)
    routed = config.experts.values()
    n_expert = max((part.n_expert for part in routed), default=0)
    n_rows = n_batch * max((part.n_expert_used for part in routed), default=0)
    hidden_size = max(hidden_values(layer.feed_forward, n_batch) for layer in config.layers)
    experts = ExpertBuffers(
        normed=normed,
        normed_int8=normed_int8,
        input=arena.take(n_rows * n_embd),
        input_int8=arena.take_int8(n_rows * n_embd),
        hidden=arena.take(hidden_size),
        hidden_int8=arena.take_int8(hidden_size),
        up=arena.take(hidden_size),
        output=arena.take(n_rows * n_embd),
        update=update,
    )
    routing = Routing(
        logits=arena.take(n_batch * n_expert),
        chosen=arena.take(n_rows, np.int64),
        weights=arena.take(n_rows),
        rows=arena.take(n_rows, np.int64),
        experts=arena.take(n_expert, np.int64),
        first_row=arena.take(n_expert + 1, np.int64),
    )
    return attention, experts, routing


def flat_input(x: np.ndarray, int8: Int8Buffers, begin: int = 0) -> np.void:
    """The ``INPUT`` of flat buffers from value ``begin`` on, a whole group; each pass tells how
    many tokens there are."""
    q, scales, sums = int8
    group = begin // GROUP
    rest = Int8Activations(q[begin:], scales[group:], sums[2 * group :]) if len(q) else None
    return input_record(x[begin:], rest)


def if_useful(int8: Int8Buffers, *formats: Format) -> Int8Buffers:
    """The buffers, or none where no format takes its activations in int8."""
    return int8 if any(fmt.int8_activations for fmt in formats) else NO_INT8
