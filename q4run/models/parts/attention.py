"""Attention as a family declares it: heads, rotation, which keys are seen, norms and biases."""

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from gguf import MODEL_TENSOR

from q4run.models.parts.tensors import BIAS, Role, Tensor
from q4run.models.rope import Rope

# Tokens that a pass may add to a layer that keeps a window: their keys are written before it is
# known which older ones are not needed any more.
WINDOW_ROOM = 1024


@dataclass(frozen=True)
class Temperature:
    """Queries grow with position p: q * (1 + scale * ln(1 + floor((p + offset) / length)))."""

    length: int
    scale: float
    offset: int = 1  # Llama 4 counts positions from 1 here, Mistral from 0


class QKNorm(Enum):
    """An RMS norm of queries and keys."""

    NONE = "none"
    PLAIN = "of each head, after RoPE, without weights"
    WEIGHTED = "of each head, before RoPE, with weights"
    WEIGHTED_AFTER_ROPE = "of each head, after RoPE, with weights"
    WHOLE = "of all heads together, before RoPE, with weights"


class KeptRows(NamedTuple):
    """What a conversation keeps for a layer: so many positions of keys and values."""

    n_positions: int
    n_head_kv: int
    key_dim: int
    value_dim: int


@dataclass(frozen=True)
class Attention:
    """Grouped-query attention; without ``rope`` it knows no positions."""

    n_head: int
    n_head_kv: int
    key_dim: int
    value_dim: int
    rope: Rope | None = None
    chunk_size: int | None = None  # keys of earlier chunks are hidden; None: all are seen
    window: int | None = None  # keys seen, the token's own the last of them; None: all
    qk_norm: QKNorm = QKNorm.NONE
    temperature: Temperature | None = None
    scale: float | None = None  # of the scores; None: 1 / sqrt(key_dim)
    qkv_bias: bool = False
    out_bias: bool = False
    sinks: bool = False  # a logit for each head that takes its share of the softmax
    sub_norm: bool = False  # a norm of what was gathered, before the output matrix
    post_norm: bool = False  # a norm of the output, before it is added to the stream
    fused_qkv: bool = False  # queries, keys and values in one matrix of the file
    residual_scale: float = 1.0  # what the output is multiplied by before it is added

    @property
    def q_width(self) -> int:
        """Values of a token's queries."""
        return self.n_head * self.key_dim

    @property
    def k_width(self) -> int:
        """Values of a token's keys."""
        return self.n_head_kv * self.key_dim

    @property
    def v_width(self) -> int:
        """Values of a token's values."""
        return self.n_head_kv * self.value_dim

    @property
    def attended_width(self) -> int:
        """Values that a token's heads gather."""
        return self.n_head * self.value_dim

    def tensors(self, n_embd: int, layer: int) -> list[Tensor]:
        """Returns the norm before attention, its matrices, biases, sinks and further norms."""
        tensors = [Tensor(MODEL_TENSOR.ATTN_NORM, (n_embd,), Role.NORM, layer)]
        for kind, width in self._projections():
            tensors.append(Tensor(kind, (width, n_embd), layer=layer))
        tensors.append(Tensor(MODEL_TENSOR.ATTN_OUT, (n_embd, self.attended_width), layer=layer))
        if self.qkv_bias:
            for kind, width in self._projections():
                tensors.append(Tensor(kind, (width,), Role.BIAS, layer, BIAS))
        if self.out_bias:
            tensors.append(Tensor(MODEL_TENSOR.ATTN_OUT, (n_embd,), Role.BIAS, layer, BIAS))
        if self.sinks:
            tensors.append(Tensor(MODEL_TENSOR.ATTN_SINKS, (self.n_head,), Role.BIAS, layer))
        for kind, width in self._norms(n_embd):
            tensors.append(Tensor(kind, (width,), Role.NORM, layer))
        return tensors

    def _projections(self) -> list[tuple[MODEL_TENSOR, int]]:
        widths = (self.q_width, self.k_width, self.v_width)
        if self.fused_qkv:
            return [(MODEL_TENSOR.ATTN_QKV, sum(widths))]
        kinds = (MODEL_TENSOR.ATTN_Q, MODEL_TENSOR.ATTN_K, MODEL_TENSOR.ATTN_V)
        return list(zip(kinds, widths, strict=True))

    def _norms(self, n_embd: int) -> list[tuple[MODEL_TENSOR, int]]:
        norms = []
        if self.qk_norm is QKNorm.WHOLE:
            norms = [
                (MODEL_TENSOR.ATTN_Q_NORM, self.q_width),
                (MODEL_TENSOR.ATTN_K_NORM, self.k_width),
            ]
        elif self.qk_norm in (QKNorm.WEIGHTED, QKNorm.WEIGHTED_AFTER_ROPE):
            norms = [
                (MODEL_TENSOR.ATTN_Q_NORM, self.key_dim),
                (MODEL_TENSOR.ATTN_K_NORM, self.key_dim),
            ]
        if self.sub_norm:
            norms.append((MODEL_TENSOR.ATTN_SUB_NORM, self.attended_width))
        if self.post_norm:
            norms.append((MODEL_TENSOR.ATTN_POST_NORM, n_embd))
        return norms

    def kept(self, context: int) -> KeptRows:
        """Returns what is kept of ``context`` positions: a chunked layer needs its chunk alone, one
        with a window that and what one pass may add."""
        n_positions = min(context, self.chunk_size or context)
        if self.window:
            n_positions = min(n_positions, self.window + WINDOW_ROOM)
        return KeptRows(n_positions, self.n_head_kv, self.key_dim, self.value_dim)

    def n_pairs(self, length: int) -> int:
        """Returns how many pairs of a query and a key ``length`` tokens multiply."""
        if self.window and self.window < length:
            return self.window * (self.window + 1) // 2 + (length - self.window) * self.window
        chunk = self.chunk_size or length
        whole, rest = divmod(length, max(1, chunk))
        return (whole * chunk * (chunk + 1) + rest * (rest + 1)) // 2
