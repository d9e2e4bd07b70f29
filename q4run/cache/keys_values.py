"""The keys and values of the conversation so far, layer by layer."""

import math

import numpy as np

from q4run.cache.state import LayerState
from q4run.errors import UnsupportedError
from q4run.kernels.attention.attend import BLOCK, MAX_HEAD_DIM
from q4run.kernels.attention.kinds import find_kind
from q4run.kernels.attention.kinds.base import KVKind
from q4run.kernels.attention.rows import KVRows
from q4run.models.config import ModelConfig
from q4run.models.parts import Attention, KeptRows

_CACHE_LINE = 64


def cache_bytes(config: ModelConfig, context: int, kv_type: str) -> int:
    """Returns what a cache for ``context`` positions takes."""
    kind = find_kind(kv_type)
    kept = (_kept(layer.attention, context) for layer in config.layers)
    return sum(
        rows.n_positions
        * rows.n_head_kv
        * (kind.row_bytes(rows.key_dim) + kind.row_bytes(rows.value_dim))
        for rows in kept
    )


def _kept(part: Attention, context: int) -> KeptRows:
    """What is kept for a layer; a window's ring holds whole blocks of rows."""
    kept = part.kept(context)
    if part.window is None or kept.n_positions == context:
        return kept
    return kept._replace(n_positions=min(context, -(-kept.n_positions // BLOCK) * BLOCK))


class KeysValues:
    """One layer's keys and values, a ``LayerState``.

    keys, values: ``KVRows`` of (n_head_kv, capacity, row). A layer with chunks holds the chunk that
    was written last, committed or not.
    """

    def __init__(self, part: Attention, context: int, kind: KVKind) -> None:
        """Raises UnsupportedError where heads are longer than attention takes."""
        if (longest := max(part.key_dim, part.value_dim)) > MAX_HEAD_DIM:
            raise UnsupportedError(
                f"the model's heads have {longest} channels; q4run's attention takes at"
                f" most {MAX_HEAD_DIM}"
            )
        kept = _kept(part, context)
        self.keys, self.values = (
            KVRows(
                kind,
                _aligned_zeros(
                    (kept.n_head_kv, kept.n_positions, kind.row_length(dim)), kind.dtype
                ),
            )
            for dim in (kept.key_dim, kept.value_dim)
        )
        self._chunk_size = part.chunk_size
        self._window = part.window if kept.n_positions < context else None
        self._n_written = 0  # behind it nothing was written, not even by a pass that broke off

    @property
    def _n_positions(self) -> int:
        return int(self.keys.array.shape[1])

    @property
    def n_bytes(self) -> int:
        """The memory of keys and values."""
        return self.keys.array.nbytes + self.values.array.nbytes

    def has_overflowed(self) -> bool:
        """Returns whether a key or a value was larger than its kind holds."""
        return any(rows.kind.has_overflowed(rows.array) for rows in (self.keys, self.values))

    def place(self, position: int) -> int:
        """Returns how many tokens that its first token may see are before a pass.

        The pass writes to the row of that number and after, a window's rows being a ring. It must
        not cross a border between two chunks.
        """
        return position % self._chunk_size if self._chunk_size else position

    def room(self, length: int, n_tokens: int) -> int:
        """A pass overwrites no key that it still needs: it stays inside one chunk, or is shorter
        than what a window's ring has room for."""
        if self._chunk_size:
            return min(n_tokens, self._chunk_size - self.place(length))
        return min(n_tokens, self._n_positions - self._window) if self._window else n_tokens

    def begin(self, length: int, n_tokens: int) -> None:
        """A pass in another chunk takes the places of the one before."""
        behind = length + n_tokens
        self._n_written = max(self._n_written, behind) if self._window else behind

    def can_rewind_to(self, length: int) -> int:
        """A length inside a chunk that is gone goes back to its border: nothing older is needed.
        Where rows of the window before a length are gone, nothing is left."""
        return self._held(length, self._n_written)

    def _held(self, length: int, n_written: int) -> int:
        """What ``can_rewind_to`` says of a layer written to that far."""
        if self._window and n_written > self._n_positions:
            oldest = n_written - self._n_positions
            return length if length - self._window + 1 >= oldest else 0
        size = self._chunk_size
        if size and length % size and (n_written - 1) // size != length // size:
            return length // size * size
        return length

    def rewind(self, length: int) -> None:
        """Rows behind ``length`` are not seen; without any, all rows are free again."""
        if length == 0:
            self._n_written = 0

    def save(self, length: int) -> dict[str, np.ndarray]:
        """The rows that hold tokens: ``keys``, ``values``, and ``n_written``."""
        forgets = self._chunk_size or self._window
        n_rows = self._n_rows(self._n_written) if forgets else length
        return {
            "keys": self.keys.array[:, :n_rows].copy(),
            "values": self.values.array[:, :n_rows].copy(),
            "n_written": np.array(self._n_written if forgets else length),
        }

    def load(self, arrays: dict[str, np.ndarray], length: int) -> None:
        """Rows behind those that were saved keep what they held: they are not seen."""
        if arrays.keys() != {"keys", "values", "n_written"}:
            raise ValueError(f"not the arrays of keys and values: {', '.join(arrays) or 'none'}")
        n_written = _whole_number(arrays, "n_written")
        self._check_holds(length, n_written)
        n_rows = self._n_rows(n_written)
        for name, rows in (("keys", self.keys.array), ("values", self.values.array)):
            given, (n_head_kv, capacity, row) = arrays[name], rows.shape
            if not isinstance(given, np.ndarray):
                raise ValueError(f"{name} are no array but {type(given).__name__}")
            if given.dtype != rows.dtype or given.shape != (n_head_kv, n_rows, row):
                raise ValueError(f"{name} of {given.dtype} {given.shape} are not of this cache")
            if n_rows > capacity:
                raise ValueError(f"{n_rows} positions do not fit into {capacity} of a layer")
        self.keys.array[:, :n_rows], self.values.array[:, :n_rows] = (
            arrays["keys"],
            arrays["values"],
        )
        self._n_written = n_written
        self.rewind(length)

    def _check_holds(self, length: int, n_written: int) -> None:
        """ValueError unless a layer written to that far holds what ``length`` tokens need."""
        forgets = self._chunk_size or self._window
        fits = length <= n_written if forgets else length == n_written
        if not fits or self._held(length, n_written) != length:
            raise ValueError(f"a layer written up to {n_written} does not hold {length} tokens")

    def _n_rows(self, n_written: int) -> int:
        """How many of a head's rows hold tokens of the conversation, its last chunk or window."""
        if self._window:
            return min(n_written, self._n_positions)
        return self.place(n_written - 1) + 1 if n_written else 0


def _aligned_zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros that begin at a cache line, so that few loads touch two of them."""
    n_bytes = math.prod(shape) * dtype.itemsize
    memory = np.zeros(n_bytes + _CACHE_LINE, np.uint8)
    begin = -memory.ctypes.data % _CACHE_LINE
    return memory[begin : begin + n_bytes].view(dtype).reshape(shape)


class KVCache:
    """The states of all layers, and how many tokens they hold."""

    def __init__(self, config: ModelConfig, context: int, kv_type: str) -> None:
        """kv_type: the name of a kind of keys and values."""
        kind = find_kind(kv_type)
        self.context = context
        self.kv_type = kv_type
        self.layers = [KeysValues(layer.attention, context, kind) for layer in config.layers]
        self.length = 0

    @property
    def _states(self) -> list[LayerState]:
        return [*self.layers]

    @property
    def n_bytes(self) -> int:
        """The memory of all layers' states."""
        return sum(state.n_bytes for state in self._states)

    def has_overflowed(self) -> bool:
        """Returns whether a key or a value was larger than ``kv_type`` holds."""
        return any(layer.has_overflowed() for layer in self.layers)

    def begin(self, n_tokens: int) -> int:
        """Announces the next tokens, at most ``n_tokens``; returns how many one pass may take."""
        for state in self._states:
            n_tokens = state.room(self.length, n_tokens)
        for state in self._states:
            state.begin(self.length, n_tokens)
        return n_tokens

    def commit(self, n_tokens: int) -> None:
        """Counts the announced tokens: they are in every layer now."""
        self.length += n_tokens

    def rewind(self, length: int) -> None:
        """Forgets all tokens from ``length`` on, and more where a layer cannot go back to there."""
        length = min(length, self.length)
        while (kept := min(state.can_rewind_to(length) for state in self._states)) != length:
            length = kept
        for state in self._states:
            state.rewind(length)
        self.length = length

    def save(self) -> dict[str, np.ndarray]:
        """Returns copies of all that a conversation needs to go on: ``length``, and ``I.NAME`` for
        each array of layer I."""
        arrays = {"length": np.array(self.length)}
        for i, state in enumerate(self._states):
            arrays |= {f"{i}.{name}": array for name, array in state.save(self.length).items()}
        return arrays

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        """Takes over what ``save`` gave, to go on from there.

        Raises ValueError where the arrays do not fit; the cache is empty then.
        """
        self.rewind(0)
        if "length" not in arrays:
            raise ValueError("not what a cache saved: it has no length")
        length = _whole_number(arrays, "length")
        if length > self.context:
            raise ValueError(f"{length} tokens do not fit into a context of {self.context}")
        begins = tuple(f"{i}." for i in range(len(self._states)))
        if stray := [name for name in arrays if name != "length" and not name.startswith(begins)]:
            raise ValueError(f"a cache of {len(begins)} layers has no {', '.join(stray)}")
        try:
            for begin, state in zip(begins, self._states, strict=True):
                own = {k.removeprefix(begin): v for k, v in arrays.items() if k.startswith(begin)}
                state.load(own, length)
        except BaseException:
            self.rewind(0)
            raise
        self.length = length


def _whole_number(arrays: dict[str, np.ndarray], name: str) -> int:
    """The number, 0 or more, that an array without axes holds; else ValueError."""
    array = arrays[name]
    if not isinstance(array, np.ndarray) or array.shape or array.dtype.kind not in "iu":
        raise ValueError(f"{name} is not one whole number")
    if array < 0:
        raise ValueError(f"{name} is {array}, less than 0")
    return int(array)
