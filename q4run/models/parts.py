"""The parts of a model, declared once: what each reads from a file, keeps and needs.

A layer is a list of parts. A part says which tensors it has, with names from gguf's own table, and
how many values a conversation keeps for it. Whoever wants to know (budget, plan, inspector,
converter, runtime) asks the part. Nothing here computes: the classes of `q4run.layers` run a part,
found by its type.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

from gguf import MODEL_TENSOR, TENSOR_NAMES

from q4run.models.rope import Rope


class Role(Enum):
    """What a tensor does: recipes choose its type by this, budgets where it stays."""

    NORM = "norm"
    ROPE_FACTORS = "rope factors"
    ROUTER = "router"
    EMBEDDING = "token embedding"
    OUTPUT = "output matrix"
    MATRIX = "matrix"
    EXPERT = "routed experts"


class Tensor(NamedTuple):
    """A tensor that a part reads; ``shape`` is in numpy's order, ``layer`` None outside layers."""

    kind: MODEL_TENSOR
    shape: tuple[int, ...]
    role: Role = Role.MATRIX
    layer: int | None = None

    @property
    def name(self) -> str:
        """The name in a GGUF file."""
        return tensor_name(self.kind, self.layer)


def tensor_name(kind: MODEL_TENSOR, layer: int | None = None) -> str:
    """Returns the GGUF name of a tensor of this kind, e.g. the query matrix of layer 3."""
    return f"{TENSOR_NAMES[kind].format(bid=layer)}.weight"


def by_kind(tensors: Iterable[Tensor]) -> dict[MODEL_TENSOR, Tensor]:
    """Returns a part's tensors by what they are."""
    return {tensor.kind: tensor for tensor in tensors}


class Part(Protocol):
    """What every part of a layer says of itself."""

    def tensors(self, n_embd: int, layer: int) -> list[Tensor]:
        """Returns the part's tensors in file order."""
        ...


@dataclass(frozen=True)
class Temperature:
    """Queries grow with position p: q * (1 + scale * ln(1 + floor((p + offset) / length)))."""

    length: int
    scale: float
    offset: int = 1  # Llama 4 counts positions from 1 here, Mistral from 0


class QKNorm(Enum):
    """An RMS norm of each query and key head."""

    NONE = "none"
    PLAIN = "after RoPE, without weights"
    WEIGHTED = "before RoPE, with weights"


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
    qk_norm: QKNorm = QKNorm.NONE
    temperature: Temperature | None = None

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
        """Returns the norm before attention, its four matrices and the weights of its q/k norm."""
        tensors = [
            Tensor(MODEL_TENSOR.ATTN_NORM, (n_embd,), Role.NORM, layer),
            Tensor(MODEL_TENSOR.ATTN_Q, (self.q_width, n_embd), layer=layer),
            Tensor(MODEL_TENSOR.ATTN_K, (self.k_width, n_embd), layer=layer),
            Tensor(MODEL_TENSOR.ATTN_V, (self.v_width, n_embd), layer=layer),
            Tensor(MODEL_TENSOR.ATTN_OUT, (n_embd, self.attended_width), layer=layer),
        ]
        if self.qk_norm is QKNorm.WEIGHTED:
            tensors += [
                Tensor(MODEL_TENSOR.ATTN_Q_NORM, (self.key_dim,), Role.NORM, layer),
                Tensor(MODEL_TENSOR.ATTN_K_NORM, (self.key_dim,), Role.NORM, layer),
            ]
        return tensors

    def kept(self, context: int) -> KeptRows:
        """Returns what is kept of ``context`` positions: a chunked layer needs its chunk alone."""
        n_positions = min(context, self.chunk_size or context)
        return KeptRows(n_positions, self.n_head_kv, self.key_dim, self.value_dim)

    def n_pairs(self, length: int) -> int:
        """Returns how many pairs of a query and a key ``length`` tokens multiply."""
        chunk = self.chunk_size or length
        whole, rest = divmod(length, max(1, chunk))
        return (whole * chunk * (chunk + 1) + rest * (rest + 1)) // 2


@dataclass(frozen=True)
class DenseFeedForward:
    """A gated feed-forward of ``n_ff`` values between gate and down."""

    n_ff: int

    def tensors(self, n_embd: int, layer: int) -> list[Tensor]:
        """Returns the norm before it, and its three matrices."""
        return [
            Tensor(MODEL_TENSOR.FFN_NORM, (n_embd,), Role.NORM, layer),
            Tensor(MODEL_TENSOR.FFN_GATE, (self.n_ff, n_embd), layer=layer),
            Tensor(MODEL_TENSOR.FFN_UP, (self.n_ff, n_embd), layer=layer),
            Tensor(MODEL_TENSOR.FFN_DOWN, (n_embd, self.n_ff), layer=layer),
        ]


class Gating(Enum):
    """How the router's logits become the weights of the chosen experts."""

    SOFTMAX = "softmax over all experts, then renormalised over the chosen"
    SIGMOID_ON_INPUT = "sigmoid of the logit, multiplied into the expert's input"


@dataclass(frozen=True)
class SharedExpert:
    """An expert that every token passes through."""

    n_ff: int

    def tensors(self, n_embd: int, layer: int) -> list[Tensor]:
        """Returns its three matrices; the norm before it is that of the routed experts."""
        return [
            Tensor(MODEL_TENSOR.FFN_GATE_SHEXP, (self.n_ff, n_embd), layer=layer),
            Tensor(MODEL_TENSOR.FFN_UP_SHEXP, (self.n_ff, n_embd), layer=layer),
            Tensor(MODEL_TENSOR.FFN_DOWN_SHEXP, (n_embd, self.n_ff), layer=layer),
        ]


@dataclass(frozen=True)
class Experts:
    """Routed experts, of which a router picks ``n_expert_used``, and perhaps a shared one."""

    n_expert: int
    n_expert_used: int
    n_ff: int
    gating: Gating
    shared: SharedExpert | None = None

    def tensors(self, n_embd: int, layer: int) -> list[Tensor]:
        """Returns the norm, the router, the stacks of experts, and the shared expert's matrices."""
        wide, narrow = (self.n_expert, self.n_ff, n_embd), (self.n_expert, n_embd, self.n_ff)
        return [
            Tensor(MODEL_TENSOR.FFN_NORM, (n_embd,), Role.NORM, layer),
            Tensor(MODEL_TENSOR.FFN_GATE_INP, (self.n_expert, n_embd), Role.ROUTER, layer),
            Tensor(MODEL_TENSOR.FFN_GATE_EXP, wide, Role.EXPERT, layer),
            Tensor(MODEL_TENSOR.FFN_UP_EXP, wide, Role.EXPERT, layer),
            Tensor(MODEL_TENSOR.FFN_DOWN_EXP, narrow, Role.EXPERT, layer),
            *(self.shared.tensors(n_embd, layer) if self.shared else []),
        ]


FeedForward = DenseFeedForward | Experts


@dataclass(frozen=True)
class Layer:
    """One layer: its parts run one after the other, each on the normed stream, added back to it."""

    attention: Attention
    feed_forward: FeedForward

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts in the order in which they run."""
        return (self.attention, self.feed_forward)

    @property
    def experts(self) -> Experts | None:
        """The routed experts; None where the feed-forward is dense."""
        return self.feed_forward if isinstance(self.feed_forward, Experts) else None

    def tensors(self, n_embd: int, layer: int) -> list[Tensor]:
        """Returns the tensors of all parts."""
        return [tensor for part in self.parts for tensor in part.tensors(n_embd, layer)]


@dataclass(frozen=True)
class Embedding:
    """The table of token embeddings."""

    n_vocab: int

    def tensors(self, n_embd: int) -> list[Tensor]:
        """Returns the table."""
        return [Tensor(MODEL_TENSOR.TOKEN_EMBD, (self.n_vocab, n_embd), Role.EMBEDDING)]


@dataclass(frozen=True)
class Head:
    """The last norm, and logits over the vocabulary; ``tied``: by the embedding table."""

    n_vocab: int
    tied: bool

    def tensors(self, n_embd: int) -> list[Tensor]:
        """Returns the norm and, unless it is tied, the output matrix."""
        norm = Tensor(MODEL_TENSOR.OUTPUT_NORM, (n_embd,), Role.NORM)
        return [norm] if self.tied else [norm, self.matrix(n_embd)]

    def matrix(self, n_embd: int) -> Tensor:
        """Returns the matrix that gives the logits."""
        if self.tied:
            return Embedding(self.n_vocab).tensors(n_embd)[0]
        return Tensor(MODEL_TENSOR.OUTPUT, (self.n_vocab, n_embd), Role.OUTPUT)


def rope_tensors(rope: Rope) -> list[Tensor]:
    """Returns what divides the frequencies of a rotation: lists of one factor a pair."""
    return [Tensor(kind, (rope.dim // 2,), Role.ROPE_FACTORS) for kind in rope.factors]
