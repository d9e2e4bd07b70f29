"""The shapes of mixture-of-experts models: what can be planned, and made up, without a file."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple

from gguf import MODEL_TENSOR

from q4run.models.config import ModelConfig
from q4run.models.parts import (
    Activation,
    Attention,
    DenseFeedForward,
    Experts,
    Layer,
    QKNorm,
    Router,
    Scores,
    SharedExpert,
    Tensor,
)

CONTEXT_LENGTH = 131072
EPS = 1e-5


class Form(NamedTuple):
    """What the layers of an architecture have, whatever their sizes.

    attention, experts: fields of the parts. shared, dense: how wide a shared expert, and a
    feed-forward without experts, is by default, in widths of an expert; gated: whether the shared
    expert is. window: keys that all but every second layer see. ``expert_key``: whether experts
    have a key of their own for their width.
    """

    attention: Mapping[str, Any] = MappingProxyType({})
    experts: Mapping[str, Any] = MappingProxyType({})
    shared: int = 0
    dense: int = 1
    gated: bool = False
    window: int = 0
    expert_key: bool = True
    step_key: bool = False


def _normed(kind: QKNorm, **more: Any) -> dict[str, Any]:
    return {"qk_norm": kind, **more}


_BIASED = {"qkv_bias": True}
_CORRECTED = {"router": Router(Scores.SIGMOID, selection_bias=True)}
_HY_V3_ROUTER = replace(_CORRECTED["router"], bare_selection_bias=True)
_FORMS = {
    "bailingmoe2": Form(_normed(QKNorm.WEIGHTED, fused_qkv=True), _CORRECTED),
    "dots1": Form(_normed(QKNorm.WEIGHTED), _CORRECTED),
    "ernie4_5-moe": Form(experts={"router": Router(selection_bias=True)}),
    "glm4moe": Form(_BIASED, {**_CORRECTED, "norm": MODEL_TENSOR.ATTN_POST_NORM}),
    "gpt-oss": Form(
        {"qkv_bias": True, "out_bias": True, "sinks": True},
        {
            "router": Router(Scores.CHOSEN_SOFTMAX, bias=True),
            "activation": Activation.CLAMPED_SWIGLU,
            "norm": MODEL_TENSOR.ATTN_POST_NORM,
            "biases": True,
        },
        window=128,
    ),
    "granitemoe": Form(expert_key=False),
    "hunyuan-moe": Form(_normed(QKNorm.WEIGHTED_AFTER_ROPE)),
    "hy_v3": Form(_normed(QKNorm.WEIGHTED), {"router": _HY_V3_ROUTER}),
    "llama": Form(expert_key=False),
    "llama4": Form(shared=1, dense=2, step_key=True),
    "minimax-m2": Form(_normed(QKNorm.WHOLE), _CORRECTED, expert_key=False),
    "olmoe": Form(_normed(QKNorm.WHOLE), expert_key=False),
    "qwen2moe": Form(_BIASED, gated=True),
    "qwen3moe": Form(_normed(QKNorm.WEIGHTED)),
}


@dataclass(frozen=True)
class Geometry:
    """The hyperparameters of a model; the defaults are Llama 4 Scout's, but its first six layers.

    ``n_ff`` is the width of one expert. Layer i has routed experts where ``moe_step`` divides
    i + 1, but for the first ``n_leading_dense``, and otherwise a dense feed-forward.
    ``shared_width`` and ``dense_width`` are told where they are not what is usual for the
    ``architecture``. ``note``: what a reader of its figures must know.
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
    if g.form.window:
        keys["attention.sliding_window"] = g.form.window
    if g.form.step_key:
        keys["interleave_moe_layer_step"] = g.moe_step
    return keys | {"vocab_size": g.n_vocab}


def config_of(geometry: Geometry) -> ModelConfig:
    """Returns the model in parts, for its bytes and its work: rotation and how experts are chosen,
    which change neither much, are left out."""
    g, form = geometry, geometry.form
    attention = Attention(g.n_head, g.n_head_kv, g.head_dim, g.head_dim, **form.attention)
    local = replace(attention, window=form.window or None)
    shared = SharedExpert(g.n_ff_shared, form.gated) if g.n_ff_shared else None
    parts = {"router": Router(), "shared": shared, **form.experts}
    experts = Experts(g.n_expert, g.n_expert_used, g.n_ff, **parts)
    dense = DenseFeedForward(g.n_ff_dense, norm=experts.norm)
    return ModelConfig(
        architecture=g.architecture,
        n_vocab=g.n_vocab,
        n_embd=g.n_embd,
        rms_norm_eps=EPS,
        context_length=CONTEXT_LENGTH,
        tied_embeddings=g.tied,
        layers=tuple(
            Layer(attention if i % 2 else local, experts if g.has_experts(i) else dense)
            for i in range(g.n_layers)
        ),
    )


def tensors_of(geometry: Geometry) -> list[Tensor]:
    """Returns every tensor of such a model, in file order."""
    return list(config_of(geometry).tensors.values())
