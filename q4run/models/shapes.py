"""The shapes of mixture-of-experts models: what can be planned, and made up, without a file."""

from dataclasses import dataclass, replace

from q4run.models.parts import (
    Attention,
    DenseFeedForward,
    Embedding,
    Experts,
    Head,
    Layer,
    QKNorm,
    Router,
    SharedExpert,
    Tensor,
)


@dataclass(frozen=True)
class Geometry:
    """The hyperparameters of a model; the defaults are Llama 4 Scout's, but its first six layers.

    ``n_ff`` is the width of one expert. Layer i has routed experts where ``moe_step`` divides
    i + 1, and otherwise a dense feed-forward. ``architecture``: ``llama4`` (with a shared expert of
    the same width), ``llama`` or ``qwen3moe``. ``note``: what a reader of its figures must know.
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

    @property
    def n_ff_dense(self) -> int:
        """The width of a feed-forward that is no expert: twice an expert's in Llama 4."""
        return 2 * self.n_ff if self.architecture == "llama4" else self.n_ff

    def has_experts(self, layer: int) -> bool:
        return (layer + 1) % self.moe_step == 0


_SCOUT = Geometry(n_layers=48, n_vocab=202048)

# As their authors published them, but for what a note says.
GEOMETRIES = {
    "scout": _SCOUT,
    "maverick": replace(_SCOUT, n_expert=128, moe_step=2),
    "behemoth": replace(
        _SCOUT,
        n_layers=94,
        n_embd=16384,
        n_head=128,
        n_ff=24576,
        note="Behemoth's depth and widths are not published: these are chosen to come to its 16"
        " experts, 288 B active and nearly 2 T parameters.",
    ),
    "mixtral": Geometry(
        architecture="llama",
        n_layers=32,
        n_embd=4096,
        n_head=32,
        n_head_kv=8,
        n_ff=14336,
        n_expert=8,
        n_expert_used=2,
        n_vocab=32000,
        rope_theta=1000000.0,
    ),
    "qwen3-30b-a3b": Geometry(
        architecture="qwen3moe",
        n_layers=48,
        n_embd=2048,
        n_head=32,
        n_head_kv=4,
        n_ff=768,
        n_expert=128,
        n_expert_used=8,
        n_vocab=151936,
        rope_theta=1000000.0,
    ),
    # Scout's form at a size that fits into the RAM of a small machine.
    "small-scout": replace(
        _SCOUT, n_layers=12, n_embd=2048, n_head=16, n_head_kv=4, n_ff=3072, n_vocab=128256
    ),
}


def hyperparameters(geometry: Geometry) -> dict[str, int | float]:
    """The GGUF keys that say it, without the architecture's prefix, in file order."""
    g = geometry
    keys: dict[str, int | float] = {
        "block_count": g.n_layers,
        "context_length": 131072,
        "embedding_length": g.n_embd,
        "feed_forward_length": g.n_ff_dense,
    }
    if g.architecture != "llama":
        keys["expert_feed_forward_length"] = g.n_ff
    keys |= {
        "attention.head_count": g.n_head,
        "attention.head_count_kv": g.n_head_kv,
        "attention.key_length": g.head_dim,
        "attention.value_length": g.head_dim,
        "rope.dimension_count": g.head_dim,
        "rope.freq_base": g.rope_theta,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "expert_count": g.n_expert,
        "expert_used_count": g.n_expert_used,
    }
    if g.architecture == "llama4":
        keys["interleave_moe_layer_step"] = g.moe_step
    return keys | {"vocab_size": g.n_vocab}


def tensors_of(geometry: Geometry) -> list[Tensor]:
    """Returns every tensor of such a model, in file order."""
    g = geometry
    attention = Attention(
        g.n_head,
        g.n_head_kv,
        g.head_dim,
        g.head_dim,
        qk_norm=QKNorm.WEIGHTED if g.architecture == "qwen3moe" else QKNorm.NONE,
    )
    shared = SharedExpert(g.n_ff) if g.architecture == "llama4" else None
    experts = Experts(g.n_expert, g.n_expert_used, g.n_ff, Router(), shared)
    dense = DenseFeedForward(g.n_ff_dense)
    tensors = Embedding(g.n_vocab).tensors(g.n_embd)
    for i in range(g.n_layers):
        layer = Layer(attention, experts if g.has_experts(i) else dense)
        tensors += layer.tensors(g.n_embd, i)
    return tensors + Head(g.n_vocab, tied=False).tensors(g.n_embd)
