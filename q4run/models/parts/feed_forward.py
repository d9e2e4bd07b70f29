"""Feed-forwards as a family declares them: dense ones, routed experts, and the shared expert."""

from dataclasses import dataclass
from enum import Enum

from gguf import MODEL_TENSOR

from q4run.models.parts.tensors import BIAS, Role, Tensor


class Activation(Enum):
    """What becomes of gate and up."""

    SILU = "silu(gate) * up"
    GELU = "gelu(gate) * up, in tanh's approximation"
    RELU_SQUARED = "relu(gate)^2 * up"
    CLAMPED_SWIGLU = "g * sigmoid(1.702 g) * (u + 1), g = min(gate, 7), u = up within 7"


@dataclass(frozen=True)
class DenseFeedForward:
    """A gated feed-forward of ``n_ff`` values between gate and down."""

    n_ff: int
    activation: Activation = Activation.SILU
    norm: MODEL_TENSOR = MODEL_TENSOR.FFN_NORM  # what the file calls the norm before it
    sub_norm: bool = False  # a norm of the values between, before down
    post_norm: bool = False  # a norm of the output, before it is added to the stream
    fused_gate_up: bool = False  # gate, then up, in the one matrix that the file calls up
    residual_scale: float = 1.0  # what the output is multiplied by before it is added

    def tensors(self, n_embd: int, layer: int) -> list[Tensor]:
        """Returns the norm before it, its matrices, and further norms."""
        tensors = [Tensor(self.norm, (n_embd,), Role.NORM, layer)]
        if self.fused_gate_up:
            tensors.append(Tensor(MODEL_TENSOR.FFN_UP, (2 * self.n_ff, n_embd), layer=layer))
        else:
            tensors += [
                Tensor(MODEL_TENSOR.FFN_GATE, (self.n_ff, n_embd), layer=layer),
                Tensor(MODEL_TENSOR.FFN_UP, (self.n_ff, n_embd), layer=layer),
            ]
        tensors.append(Tensor(MODEL_TENSOR.FFN_DOWN, (n_embd, self.n_ff), layer=layer))
        if self.sub_norm:
            tensors.append(Tensor(MODEL_TENSOR.FFN_SUB_NORM, (self.n_ff,), Role.NORM, layer))
        if self.post_norm:
            tensors.append(Tensor(MODEL_TENSOR.FFN_POST_NORM, (n_embd,), Role.NORM, layer))
        return tensors


class Scores(Enum):
    """How logits become the scores that weights are taken from."""

    SOFTMAX = "softmax over all experts"
    SIGMOID = "sigmoid of each logit"
    CHOSEN_SOFTMAX = "softmax over the chosen logits"


@dataclass(frozen=True)
class Router:
    """Which experts a token goes to, and with what weights.

    The chosen are the best by score, plus the selection bias where there is one; of ``n_group``
    groups of experts, those in the ``n_group_used`` groups whose two best add up to the most.
    Weights are the scores of the chosen, divided by their sum if ``renormalise``, times ``scale``.
    """

    scores: Scores = Scores.SOFTMAX
    renormalise: bool = True
    scale: float = 1.0
    bias: bool = False  # added to the logits
    selection_bias: bool = False  # added to the scores for the choice alone
    n_group: int = 1
    n_group_used: int = 1
    on_input: bool = False  # weights multiply what the experts get, not what they give
    bare_selection_bias: bool = False  # the selection bias is named without an end in the file


@dataclass(frozen=True)
class SharedExpert:
    """An expert that every token passes through; ``gated``: times a sigmoid of its own."""

    n_ff: int
    gated: bool = False

    def tensors(self, n_embd: int, layer: int) -> list[Tensor]:
        """Returns its matrices and its gate; the norm before it is that of the routed experts."""
        tensors = [
            Tensor(MODEL_TENSOR.FFN_GATE_SHEXP, (self.n_ff, n_embd), layer=layer),
            Tensor(MODEL_TENSOR.FFN_UP_SHEXP, (self.n_ff, n_embd), layer=layer),
            Tensor(MODEL_TENSOR.FFN_DOWN_SHEXP, (n_embd, self.n_ff), layer=layer),
        ]
        if self.gated:
            tensors.append(Tensor(MODEL_TENSOR.FFN_GATE_INP_SHEXP, (n_embd,), Role.ROUTER, layer))
        return tensors


@dataclass(frozen=True)
class Experts:
    """Routed experts, of which a router picks ``n_expert_used``, and perhaps a shared one."""

    n_expert: int
    n_expert_used: int
    n_ff: int
    router: Router
    shared: SharedExpert | None = None
    activation: Activation = Activation.SILU  # of the shared expert too
    norm: MODEL_TENSOR = MODEL_TENSOR.FFN_NORM  # what the file calls the norm before them
    biases: bool = False  # of gate, up and down
    fused_gate_up: bool = False  # gate, then up, in one stack of the file
    residual_scale: float = 1.0  # what the output is multiplied by before it is added

    def tensors(self, n_embd: int, layer: int) -> list[Tensor]:
        """Returns the norm, the router, the stacks of experts, and the shared expert's tensors."""
        router = self.router
        tensors = [
            Tensor(self.norm, (n_embd,), Role.NORM, layer),
            Tensor(MODEL_TENSOR.FFN_GATE_INP, (self.n_expert, n_embd), Role.ROUTER, layer),
        ]
        per_expert = (self.n_expert,)
        if router.bias:
            kind = MODEL_TENSOR.FFN_GATE_INP
            tensors.append(Tensor(kind, per_expert, Role.BIAS, layer, BIAS))
        if router.selection_bias:
            kind = MODEL_TENSOR.FFN_EXP_PROBS_B
            bare = router.bare_selection_bias
            tensors.append(Tensor(kind, per_expert, Role.BIAS, layer, BIAS, bare))
        stacks = self._stacks(n_embd)
        tensors += [
            Tensor(kind, (self.n_expert, n_rows, n_cols), Role.EXPERT, layer)
            for kind, n_rows, n_cols in stacks
        ]
        if self.biases:
            tensors += [
                Tensor(kind, (self.n_expert, n_rows), Role.BIAS, layer, BIAS)
                for kind, n_rows, _ in stacks
            ]
        return tensors + (self.shared.tensors(n_embd, layer) if self.shared else [])

    def _stacks(self, n_embd: int) -> list[tuple[MODEL_TENSOR, int, int]]:
        down = (MODEL_TENSOR.FFN_DOWN_EXP, n_embd, self.n_ff)
        if self.fused_gate_up:
            return [(MODEL_TENSOR.FFN_GATE_UP_EXP, 2 * self.n_ff, n_embd), down]
        return [
            (MODEL_TENSOR.FFN_GATE_EXP, self.n_ff, n_embd),
            (MODEL_TENSOR.FFN_UP_EXP, self.n_ff, n_embd),
            down,
        ]


FeedForward = DenseFeedForward | Experts
