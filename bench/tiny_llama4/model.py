"""The Llama 4 text model: its shape, its parameters and the forward pass over a batch.

The arithmetic is that of `transformers`' `Llama4ForCausalLM`, which a test compares: RoPE over
neighbouring pairs and a weightless norm of q and k after it, except on every fourth layer, which
has neither and sees past chunks; one expert of 16 per token, chosen by the largest router logit,
whose sigmoid scales the expert's input; and a shared expert. Tokens go to their expert by index.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from q4run.bench.tiny_llama4 import attention, ops
from q4run.bench.tiny_llama4.ops import Weight


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and constants, named as the project's GGUF metadata has them."""

    n_vocab: int = 4096
    n_embd: int = 256
    n_layer: int = 6
    n_head: int = 8
    n_head_kv: int = 4
    head_dim: int = 32
    n_ff_expert: int = 256
    n_expert: int = 16
    rope_theta: float = 10000.0
    rms_eps: float = 1e-5
    nope_interval: int = 4
    chunk_size: int = 8192
    floor_scale: int = 8192
    attn_scale: float = 0.1

    def has_rope(self, layer: int) -> bool:
        """Whether a layer has RoPE, the norm of q and k, and chunked attention."""
        return (layer + 1) % self.nope_interval != 0

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The parameters; matrices as (outputs, inputs), experts in front."""
        n_embd, n_ff, n_expert = self.n_embd, self.n_ff_expert, self.n_expert
        n_q, n_kv = self.n_head * self.head_dim, self.n_head_kv * self.head_dim
        result: dict[str, tuple[int, ...]] = {"embedding": (self.n_vocab, n_embd)}
        for layer in range(self.n_layer):
            result |= {
                f"{layer}.attn_norm": (n_embd,),
                f"{layer}.q": (n_q, n_embd),
                f"{layer}.k": (n_kv, n_embd),
                f"{layer}.v": (n_kv, n_embd),
                f"{layer}.o": (n_embd, n_q),
                f"{layer}.ffn_norm": (n_embd,),
                f"{layer}.router": (n_expert, n_embd),
                f"{layer}.experts.gate_up": (n_expert, 2 * n_ff, n_embd),
                f"{layer}.experts.down": (n_expert, n_embd, n_ff),
                f"{layer}.shared.gate_up": (1, 2 * n_ff, n_embd),
                f"{layer}.shared.down": (1, n_embd, n_ff),
            }
        return result | {"norm": (n_embd,)}


@dataclass
class Pass:
    """What a forward pass leaves: `hidden` (tokens, n_embd), normed, for the head.

    Per layer: `experts`, the expert of each token (tokens,); `after_attention` and `after_layer`,
    the residual stream (tokens, n_embd) float32, if they were asked for. `imbalance` is the mean
    over layers of Switch Transformers' balancing loss (arXiv:2101.03961): 1 when even.
    """

    hidden: Tensor
    imbalance: Tensor
    experts: list[Tensor] = field(default_factory=list)
    after_attention: list[Tensor] = field(default_factory=list)
    after_layer: list[Tensor] = field(default_factory=list)


def forward(
    config: ModelConfig,
    weights: dict[str, Weight],
    ids: Tensor,
    lengths: list[int],
    keep_states: bool = False,
) -> Pass:
    """Runs `ids` (tokens,), documents of `lengths` end to end, through all layers."""
    dtype = weights["embedding"].value.dtype
    positions = torch.cat([torch.arange(length) for length in lengths])
    rotation = attention.rotations(positions, config.head_dim, config.rope_theta)
    temperature = None
    if max(lengths) >= config.floor_scale:
        temperature = attention.temperatures(positions, config.floor_scale, config.attn_scale)
    chunks = attention.chunk_lengths(lengths, config.chunk_size)

    x = ops.embedding(ids, weights["embedding"])
    result = Pass(hidden=x, imbalance=torch.zeros(()))
    for layer in range(config.n_layer):
        own = {name: weights[f"{layer}.{name}"] for name in _LAYER_WEIGHTS}
        h = ops.rms_norm(x, own["attn_norm"], config.rms_eps, dtype)
        if config.has_rope(layer):
            x = x + _attend(config, own, h, chunks, rotation, None)
        else:
            x = x + _attend(config, own, h, lengths, None, temperature)
        if keep_states:
            result.after_attention.append(x)
        h = ops.rms_norm(x, own["ffn_norm"], config.rms_eps, dtype)
        y, experts, imbalance = _experts(config, own, h)
        x = x + y
        result.experts.append(experts)
        result.imbalance = result.imbalance + imbalance / config.n_layer
        if keep_states:
            result.after_layer.append(x)
    result.hidden = ops.rms_norm(x, weights["norm"], config.rms_eps, dtype)
    return result


_LAYER_WEIGHTS = [
    name.removeprefix("0.") for name in ModelConfig(n_layer=1).shapes() if name.startswith("0.")
]


def _attend(
    config: ModelConfig,
    own: dict[str, Weight],
    h: Tensor,
    lengths: list[int],
    rotation: Tensor | None,
    temperature: Tensor | None,
) -> Tensor:
    q, k, v = (
        ops.linear(h, own[name]).unflatten(1, (-1, config.head_dim)) for name in ("q", "k", "v")
    )
    if rotation is not None:
        q = attention.rotate_and_norm(q, rotation, config.rms_eps)
        k = attention.rotate_and_norm(k, rotation, config.rms_eps)
    if temperature is not None:
        q = (q * temperature).to(q.dtype)
    return ops.linear(attention.causal_attention(q, k, v, lengths), own["o"])


def router_logits(router: Weight, h: Tensor) -> Tensor:
    """(tokens, experts) float32."""
    return ops.linear(h.float(), router)


def _experts(
    config: ModelConfig, own: dict[str, Weight], h: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The experts' output, which expert each token went to, and the imbalance."""
    logits = router_logits(own["router"], h)
    top, experts = logits.max(1)
    counts = torch.bincount(experts, minlength=config.n_expert)
    share = counts / len(h)
    imbalance = config.n_expert * torch.dot(share, torch.softmax(logits, 1).mean(0))

    order = torch.argsort(experts, stable=True)
    inverse = torch.argsort(order)
    scaled = h * torch.sigmoid(top)[:, None].to(h.dtype)
    routed = ops.feed_forward(
        ops.permute(scaled, order, inverse),
        own["experts.gate_up"],
        own["experts.down"],
        tuple(counts.tolist()),
    )
    shared = ops.feed_forward(h, own["shared.gate_up"], own["shared.down"], (len(h),))
    return shared + ops.permute(routed, inverse, order), experts, imbalance
