"""What a model is, in numbers: read from GGUF by a family file, and what layers are built from."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from q4run.errors import FormatError
from q4run.gguf_file import GGUFFile

# Bounds on what a file may claim, far above any known model: what is allocated follows from them.
_MAX_LAYERS = 4096
_MAX_WIDTH = 1 << 20
_MAX_EXPERTS = 1 << 16


class Gating(Enum):
    """How the router's logits become the weights of the chosen experts."""

    SOFTMAX = "softmax over all experts, then renormalised over the chosen"
    SIGMOID_ON_INPUT = "sigmoid of the logit, multiplied into the expert's input"


@dataclass(frozen=True)
class Temperature:
    """Queries grow with position p: q * (1 + scale * ln(1 + floor((p + 1) / length)))."""

    length: int
    scale: float


@dataclass(frozen=True)
class AttentionConfig:
    """One layer's attention."""

    rope: bool
    chunk_size: int | None = None  # keys of earlier chunks are hidden; None: all are seen
    qk_norm: bool = False  # weightless RMS norm of each query and key head, after RoPE
    temperature: Temperature | None = None


@dataclass(frozen=True)
class MoeConfig:
    """One layer's routed experts; ``n_ff_shared`` is 0 where no shared expert is."""

    n_expert: int
    n_expert_used: int
    n_ff: int
    n_ff_shared: int
    gating: Gating


@dataclass(frozen=True)
class LayerConfig:
    """One layer: attention, then either a dense feed-forward of ``n_ff`` or experts."""

    attention: AttentionConfig
    n_ff: int = 0
    moe: MoeConfig | None = None


@dataclass(frozen=True)
class ModelConfig:
    """The hyperparameters of a decoder."""

    architecture: str
    n_vocab: int
    n_embd: int
    n_head: int
    n_head_kv: int
    head_dim: int
    rope_dim: int
    rope_theta: float
    rms_norm_eps: float
    context_length: int
    tied_embeddings: bool
    layers: tuple[LayerConfig, ...]


def read_decoder(
    file: GGUFFile, describe_layer: Callable[[int], LayerConfig], rope_theta: float = 10000.0
) -> ModelConfig:
    """Reads the keys that all decoder families share; ``describe_layer(i)`` tells layer i.

    Raises FormatError where a key is missing or the numbers contradict each other.
    """
    arch = file.architecture
    n_embd = file.get_int(f"{arch}.embedding_length", minimum=1, maximum=_MAX_WIDTH)
    n_head = file.get_int(f"{arch}.attention.head_count", minimum=1, maximum=_MAX_WIDTH)
    n_head_kv = file.get_int(
        f"{arch}.attention.head_count_kv", n_head, minimum=1, maximum=_MAX_WIDTH
    )
    head_dim = file.get_int(
        f"{arch}.attention.key_length", n_embd // n_head, minimum=1, maximum=_MAX_WIDTH
    )
    value_dim = file.get_int(f"{arch}.attention.value_length", head_dim, minimum=1)
    rope_dim = file.get_int(f"{arch}.rope.dimension_count", head_dim, minimum=2)
    if n_head % n_head_kv:
        raise FormatError(f"{file.path}: {n_head} heads do not share {n_head_kv} KV heads evenly")
    if head_dim < 1 or value_dim != head_dim:
        raise FormatError(f"{file.path}: key heads of {head_dim} and value heads of {value_dim}")
    theta = file.get_float(f"{arch}.rope.freq_base", rope_theta)
    if theta <= 0:
        raise FormatError(f"{file.path}: {arch}.rope.freq_base is {theta}, but must be positive")
    if rope_dim > head_dim or rope_dim % 2:
        raise FormatError(f"{file.path}: RoPE over {rope_dim} of {head_dim} values of a head")
    return ModelConfig(
        architecture=arch,
        n_vocab=file.tensor("token_embd.weight").shape[0],
        n_embd=n_embd,
        n_head=n_head,
        n_head_kv=n_head_kv,
        head_dim=head_dim,
        rope_dim=rope_dim,
        rope_theta=theta,
        rms_norm_eps=file.get_float(f"{arch}.attention.layer_norm_rms_epsilon"),
        context_length=file.get_int(f"{arch}.context_length", minimum=1),
        tied_embeddings="output.weight" not in file.tensors,
        layers=tuple(describe_layer(i) for i in range(n_layers(file))),
    )


def n_layers(file: GGUFFile) -> int:
    """The number of layers the file states."""
    return file.get_int(f"{file.architecture}.block_count", minimum=1, maximum=_MAX_LAYERS)


def read_moe(file: GGUFFile, n_ff: int, n_ff_shared: int, gating: Gating) -> MoeConfig:
    """The expert counts, checked; the widths and the gating are the family's to tell."""
    arch = file.architecture
    n_expert = file.get_int(f"{arch}.expert_count", minimum=1, maximum=_MAX_EXPERTS)
    n_expert_used = file.get_int(f"{arch}.expert_used_count", minimum=1, maximum=n_expert)
    return MoeConfig(n_expert, n_expert_used, n_ff, n_ff_shared, gating)


def read_n_ff(file: GGUFFile, key: str, default: int | None = None) -> int:
    """A feed-forward width, complete key without the architecture's prefix."""
    full_key = f"{file.architecture}.{key}"
    if default is None:
        return file.get_int(full_key, minimum=1, maximum=_MAX_WIDTH)
    return file.get_int(full_key, default, minimum=1, maximum=_MAX_WIDTH)
