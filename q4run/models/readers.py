"""Readers of what some families have: routers, shared experts, which layers are what, windows.

`keys` has the keys that each obeys under its name. What a reader finds missing is the family's
default; values that llama.cpp takes for none (a scale of 0, a window of 0) are none here.
"""

from collections.abc import Callable
from dataclasses import replace

from gguf import MODEL_TENSOR, ExpertGatingFuncType

from q4run.errors import FormatError, UnsupportedError
from q4run.gguf_file import GGUFFile
from q4run.models.config import (
    MAX_WIDTH,
    ModelConfig,
    has_tensor,
    in_any_layer,
    n_blocks,
    n_layers,
    read_decoder,
    read_experts,
    read_n_ff,
    read_per_layer,
)
from q4run.models.parts import (
    BARE,
    BIAS,
    Attention,
    DenseFeedForward,
    Layer,
    QKNorm,
    Router,
    Scores,
    SharedExpert,
    tensor_name,
)

SOFTMAX_WEIGHT = 3  # llama.cpp's name, which gguf does not have
_SCORES = {
    int(ExpertGatingFuncType.SOFTMAX): Scores.SOFTMAX,
    int(ExpertGatingFuncType.SIGMOID): Scores.SIGMOID,
    SOFTMAX_WEIGHT: Scores.CHOSEN_SOFTMAX,
}


def read_router(file: GGUFFile, default: Router) -> Router:
    """Reads how experts are chosen and weighed (ROUTER_KEYS), and whether there are biases.

    Raises UnsupportedError for a gating function that is not known, FormatError for groups that
    cannot be.
    """
    arch = file.architecture
    gating = file.get_int(f"{arch}.expert_gating_func", 0)
    if gating and gating not in _SCORES:
        raise UnsupportedError(
            f"{file.path}: {arch}.expert_gating_func is {gating}, which q4run does not know"
            f" (known: {', '.join(map(str, _SCORES))})"
        )
    n_group = file.get_int(f"{arch}.expert_group_count", default.n_group) or 1
    n_group_used = file.get_int(f"{arch}.expert_group_used_count", default.n_group_used) or 1
    if n_group == 1:
        n_group_used = 1
    elif n_group_used > n_group:
        raise FormatError(f"{file.path}: {n_group_used} of {n_group} groups of experts are used")
    bare = in_any_layer(file, MODEL_TENSOR.FFN_EXP_PROBS_B, BARE)
    return replace(
        default,
        scores=_SCORES[gating] if gating else default.scores,
        renormalise=file.get_bool(f"{arch}.expert_weights_norm", default.renormalise),
        scale=read_multiplier(file, "expert_weights_scale", default.scale),
        bias=in_any_layer(file, MODEL_TENSOR.FFN_GATE_INP, BIAS),
        selection_bias=bare or in_any_layer(file, MODEL_TENSOR.FFN_EXP_PROBS_B, BIAS),
        bare_selection_bias=bare,
        n_group=n_group,
        n_group_used=n_group_used,
    )


def read_shared(file: GGUFFile, n_ff: int) -> SharedExpert | None:
    """Reads the shared expert (SHARED_KEYS), ``n_ff`` being the width of a routed one.

    Its matrices tell its width better than the keys do, which files fill in differently.
    """
    arch = file.architecture
    count = file.get_int(f"{arch}.expert_shared_count", 0, maximum=MAX_WIDTH // n_ff)
    width = file.get_int(
        f"{arch}.expert_shared_feed_forward_length", count * n_ff, maximum=MAX_WIDTH
    )
    for layer in range(n_layers(file)):
        if has_tensor(file, MODEL_TENSOR.FFN_UP_SHEXP, layer):
            width = file.tensor(tensor_name(MODEL_TENSOR.FFN_UP_SHEXP, layer)).shape[0]
            break
    gated = in_any_layer(file, MODEL_TENSOR.FFN_GATE_INP_SHEXP)
    return SharedExpert(width, gated) if width else None


def read_moe(
    file: GGUFFile,
    attention: Attention,
    router: Router,
    *,
    norm: MODEL_TENSOR = MODEL_TENSOR.FFN_NORM,
    step: int = 1,
    default_leading_dense: int = 0,
) -> ModelConfig:
    """Reads a decoder whose layers all have that attention and, but for the first few, experts
    (MOE_KEYS).

    router, default_leading_dense: what holds where the file does not say; norm: what the file calls
    the norm before the feed-forward; step: from one layer with experts to the next, as
    `read_interleave` has it.
    """
    n_ff = read_n_ff(file, "feed_forward_length")
    n_ff_expert = read_n_ff(file, "expert_feed_forward_length", n_ff)
    shared = read_shared(file, n_ff_expert)
    experts = replace(read_experts(file, n_ff_expert, read_router(file, router), shared), norm=norm)
    dense = DenseFeedForward(n_ff, norm=norm)
    n_leading_dense = read_leading_dense(file, default_leading_dense)
    return read_decoder(
        file,
        lambda i: Layer(attention, dense if i < n_leading_dense or (i + 1) % step else experts),
    )


def read_leading_dense(file: GGUFFile, default: int = 0) -> int:
    """Reads how many layers come before the first with experts (LEADING_DENSE_KEYS)."""
    key = f"{file.architecture}.leading_dense_block_count"
    return file.get_int(key, default, maximum=n_blocks(file))


def read_interleave(file: GGUFFile, default: int = 1) -> int:
    """Reads the step from one layer with experts to the next (INTERLEAVE_KEYS).

    Layer i has experts where the step divides i + 1.
    """
    key = f"{file.architecture}.interleave_moe_layer_step"
    return file.get_int(key, default) or 1


def read_window(file: GGUFFile) -> int | None:
    """Reads how many keys a token sees, its own among them (WINDOW_KEYS); None: all."""
    return file.get_int(f"{file.architecture}.attention.sliding_window", 0) or None


def read_window_pattern(file: GGUFFile, n: int, default_period: int) -> list[bool]:
    """Reads which layers have the window (WINDOW_PATTERN_KEYS), an entry for each of ``n`` layers.

    A period of n means that every n-th layer sees everything; 0 that none does. Raises
    FormatError for a list of another length than the layers.
    """
    key = "attention.sliding_window_pattern"
    full_key = f"{file.architecture}.{key}"
    array = file.metadata.array(full_key)
    if array is not None:
        element = bool if array.element_type.name == "BOOL" else int
        values = file.get_array(full_key, element)
        return [bool(value) for value in read_per_layer(file, key, values)]
    period = file.get_int(full_key, default_period)
    return [period == 0 or (i + 1) % period != 0 for i in range(n)]


def read_qk_norm(file: GGUFFile, kind: QKNorm, layer: int = 0) -> QKNorm:
    """Returns ``kind``, or none where the layer has no weights of such norms."""
    return kind if has_tensor(file, MODEL_TENSOR.ATTN_Q_NORM, layer) else QKNorm.NONE


def read_multiplier(file: GGUFFile, key: str, default: float = 1.0) -> float:
    """Reads a factor; a 0 says 1. ``key`` is complete but for the architecture's prefix."""
    return file.get_float(f"{file.architecture}.{key}", default) or 1.0


def read_multiplied(file: GGUFFile, describe_layer: Callable[[float], Layer]) -> ModelConfig:
    """Reads a decoder like Granite's, whose every part is multiplied by a number of the file
    (MULTIPLIER_KEYS); ``describe_layer(residual_scale)`` tells what every layer is."""
    layer = describe_layer(read_multiplier(file, "residual_scale"))
    scale = file.get_float(f"{file.architecture}.attention.scale", 0.0) or None
    layer = replace(layer, attention=replace(layer.attention, scale=scale))
    return replace(
        read_decoder(file, lambda _: layer),
        embedding_scale=read_multiplier(file, "embedding_scale"),
        logit_divisor=read_multiplier(file, "logit_scale"),
    )


def read_soft_cap(file: GGUFFile) -> float | None:
    """Reads within what the logits are kept (SOFT_CAP_KEYS); None: within nothing.

    Raises FormatError where it is negative.
    """
    key = f"{file.architecture}.final_logit_softcapping"
    cap = file.get_float(key, 0.0)
    if cap < 0:
        raise FormatError(f"{file.path}: {key} is {cap:g}, but must not be negative")
    return cap or None
