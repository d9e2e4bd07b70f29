"""The shapes of mixture-of-experts models: what can be planned, and made up, without a file."""

from dataclasses import dataclass
from typing import NamedTuple

from q4run.models.config import ModelConfig
from q4run.models.parts import (
    Attention,
    DenseFeedForward,
    Experts,
    Layer,
    QKNorm,
    Router,
    SharedExpert,
    Tensor,
)

CONTEXT_LENGTH = 131072
EPS = 1e-5


class Form(NamedTuple):
    """What the layers of an architecture have, whatever their sizes.

    shared, dense: how wide a shared expert, and a feed-forward without experts, is by default, in
    widths of an expert. ``expert_key``: whether experts have a key of their own for their width.
    """

    qk_norm: QKNorm = QKNorm.NONE
    shared: int = 0
    dense: int = 1
    expert_key: bool = True
    step_key: bool = False


_NORMED = Form(qk_norm=QKNorm.WEIGHTED)
_FORMS = {
    "bailingmoe2": _NORMED,
    "dots1": _NORMED,
    "ernie4_5-moe": Form(),
    "glm4moe": Form(),
    "gpt-oss": Form(),
    "granitemoe": Form(expert_key=False),
    "hunyuan-moe": _NORMED,
    "hy_v3": _NORMED,
    "llama": Form(expert_key=False),
    "llama4": Form(shared=1, dense=2, step_key=True),
    "minimax-m2": Form(QKNorm.WEIGHTED, expert_key=False),
    "olmoe": Form(QKNorm.WEIGHTED, expert_key=False),
    "qwen2moe": Form(),
    "qwen3moe": _NORMED,
}


@dataclass(frozen=True)
class Geometry:
    """The hyperparameters of a model; the defaults are Llama 4 Scout's, but its first six layers.

    ``n_ff`` is the width of one expert. Layer i has routed experts where ``moe_step`` divides
    i + 1, but for the first ``n_leading_dense``, and otherwise a dense feed-forward.
    ``shared_width`` and ``dense_width`` are told where they are not what is usual for the
    ``architecture``. ``note``: what a reader of its figures must know.

    Biases, sinks and other single vectors are left out: they take hardly any bytes.
    """

    n_layers: int = 6
    n_embd: int = 5120
    n_head: int = 40
    n_head_kv: int = 8
    head_dim: int = 128
    n_ff: int = 8192
    n_expert: int = 16
    n_vocab: int = 4096
    architecture: str = "llama4"
    n_expert_used: int = 1
    moe_step: int = 1
    rope_theta: float = 500000.0
    note: str = ""
    shared_width: int | None = None
    dense_width: int | None = None
    n_leading_dense: int = 0
    tied: bool = False

    @property
    def form(self) -> Form:
        """What its architecture has, whatever the sizes."""
        return _FORMS[self.architecture]

    @property
    def n_ff_dense(self) -> int:
        """The width of a feed-forward that is no expert."""
        return self.form.dense * self.n_ff if self.dense_width is None else self.dense_width

    @property
    def n_ff_shared(self) -> int:
        """The width of the shared expert; 0 where there is none."""
        return self.form.shared * self.n_ff if self.shared_width is None else self.shared_width

    def has_experts(self, layer: int) -> bool:
        """Tells whether the feed-forward of a layer is routed experts."""
        return layer >= self.n_leading_dense and (layer + 1) % self.moe_step == 0


def hyperparameters(geometry: Geometry) -> dict[str, int | float]:
    """The GGUF keys that say it, without the architecture's prefix, in file order."""
    g = geometry
    keys: dict[str, int | float] = {
        "block_count": g.n_layers,
        "context_length": CONTEXT_LENGTH,
        "embedding_length": g.n_embd,
        "feed_forward_length": g.n_ff_dense if g.form.expert_key else g.n_ff,
    }
    if g.form.expert_key:
        keys["expert_feed_forward_length"] = g.n_ff
    if g.shared_width is not None:
        keys["expert_shared_feed_forward_length"] = g.shared_width
    if g.n_leading_dense:
        keys["leading_dense_block_count"] = g.n_leading_dense
    keys |= {
        "attention.head_count": g.n_head,
        "attention.head_count_kv": g.n_head_kv,
        "attention.key_length": g.head_dim,
        "attention.value_length": g.head_dim,
        "rope.dimension_count": g.head_dim,
        "rope.freq_base": g.rope_theta,
        "attention.layer_norm_rms_epsilon": EPS,
        "expert_count": g.n_expert,
        "expert_used_count": g.n_expert_used,
    }
    if g.form.step_key:
        keys["interleave_moe_layer_step"] = g.moe_step
    return keys | {"vocab_size": g.n_vocab}


def config_of(geometry: Geometry) -> ModelConfig:
    """Returns the model in parts, for its bytes and its work: rotation, gating and windows, which
    change neither much, are left out."""
    g = geometry
    attention = Attention(g.n_head, g.n_head_kv, g.head_dim, g.head_dim, qk_norm=g.form.qk_norm)
    shared = SharedExpert(g.n_ff_shared) if g.n_ff_shared else None
    experts = Experts(g.n_expert, g.n_expert_used, g.n_ff, Router(), shared)
    dense = DenseFeedForward(g.n_ff_dense)
    return ModelConfig(
        architecture=g.architecture,
        n_vocab=g.n_vocab,
        n_embd=g.n_embd,
        rms_norm_eps=EPS,
        context_length=CONTEXT_LENGTH,
        tied_embeddings=g.tied,
        layers=tuple(
            Layer(attention, experts if g.has_experts(i) else dense) for i in range(g.n_layers)
        ),
    )


def tensors_of(geometry: Geometry) -> list[Tensor]:
    """Returns every tensor of such a model, in file order."""
    return list(config_of(geometry).tensors.values())
