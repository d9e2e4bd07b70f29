"""What a model is, in numbers: read from GGUF by a family file, and what layers are built from."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from gguf import MODEL_TENSOR

from q4run.errors import FormatError
from q4run.gguf_file import GGUFFile
from q4run.models.parts import (
    Attention,
    Embedding,
    Experts,
    Head,
    Layer,
    Role,
    Router,
    SharedExpert,
    Tensor,
    rope_tensors,
    tensor_name,
)
from q4run.models.rope import Rope
from q4run.models.rope_keys import ROPE_DEFAULTS, RopeDefaults, read_rope

# Bounds on what a file may claim, far above any known model: what is allocated follows from them.
_MAX_LAYERS = 4096
_MAX_WIDTH = 1 << 20
_MAX_EXPERTS = 1 << 16


@dataclass(frozen=True)
class ModelConfig:
    """The hyperparameters of a decoder: what its layers are, and what stands around them."""

    architecture: str
    n_vocab: int
    n_embd: int
    rms_norm_eps: float
    context_length: int
    tied_embeddings: bool
    layers: tuple[Layer, ...]
    embedding_scale: float = 1.0
    logit_divisor: float = 1.0
    soft_cap: float | None = None  # of the logits

    @property
    def embedding(self) -> Embedding:
        """The part before the layers."""
        return Embedding(self.n_vocab, self.embedding_scale)

    @property
    def head(self) -> Head:
        """The part after the layers."""
        return Head(self.n_vocab, self.tied_embeddings, self.logit_divisor, self.soft_cap)

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that the model reads, by its GGUF name, in file order."""
        tensors = self.embedding.tensors(self.n_embd)
        for i, layer in enumerate(self.layers):
            tensors += layer.tensors(self.n_embd, i)
        tensors += self.head.tensors(self.n_embd)
        for rope in self.ropes:
            tensors += rope_tensors(rope)
        return {tensor.name: tensor for tensor in tensors}

    @cached_property
    def streamed(self) -> set[str]:
        """The tensors that stay on disk: experts, and the embedding unless it is the head too."""
        roles = {Role.EXPERT} if self.tied_embeddings else {Role.EXPERT, Role.EMBEDDING}
        return {name for name, tensor in self.tensors.items() if tensor.role in roles}

    @property
    def ropes(self) -> list[Rope]:
        """The rotations that layers have, each once."""
        return list(dict.fromkeys(a.rope for a in (x.attention for x in self.layers) if a.rope))

    @property
    def experts(self) -> dict[int, Experts]:
        """The routed experts by the number of their layer."""
        return {i: layer.experts for i, layer in enumerate(self.layers) if layer.experts}


def read_decoder(file: GGUFFile, describe_layer: Callable[[int], Layer]) -> ModelConfig:
    """Reads the keys that all decoder families share; ``describe_layer(i)`` tells layer i.

    Raises FormatError where a key is missing.
    """
    arch = file.architecture
    return ModelConfig(
        architecture=arch,
        n_vocab=file.tensor(tensor_name(MODEL_TENSOR.TOKEN_EMBD)).shape[0],
        n_embd=read_n_embd(file),
        rms_norm_eps=file.get_float(f"{arch}.attention.layer_norm_rms_epsilon"),
        context_length=file.get_int(f"{arch}.context_length", minimum=1),
        tied_embeddings=tensor_name(MODEL_TENSOR.OUTPUT) not in file.tensors,
        layers=tuple(describe_layer(i) for i in range(n_layers(file))),
    )


def read_attention(file: GGUFFile, rope: RopeDefaults = ROPE_DEFAULTS) -> Attention:
    """Reads heads and rotation, as all layers have them; the rest is the family's to tell.

    rope: what holds where the file does not say. Raises FormatError where a key is missing
    or the numbers contradict each other, UnsupportedError for an unknown scaling of RoPE.
    """
    arch = file.architecture
    n_embd = read_n_embd(file)
    n_head = file.get_int(f"{arch}.attention.head_count", minimum=1, maximum=_MAX_WIDTH)
    n_head_kv = file.get_int(
        f"{arch}.attention.head_count_kv", n_head, minimum=1, maximum=_MAX_WIDTH
    )
    key_dim = file.get_int(
        f"{arch}.attention.key_length", n_embd // n_head, minimum=1, maximum=_MAX_WIDTH
    )
    value_dim = file.get_int(
        f"{arch}.attention.value_length", key_dim, minimum=1, maximum=_MAX_WIDTH
    )
    if n_head % n_head_kv:
        raise FormatError(f"{file.path}: {n_head} heads do not share {n_head_kv} KV heads evenly")
    if key_dim < 1:
        raise FormatError(f"{file.path}: key heads of {key_dim}")
    return Attention(n_head, n_head_kv, key_dim, value_dim, read_rope(file, key_dim, rope))


def read_n_embd(file: GGUFFile) -> int:
    """Reads the width of the stream."""
    key = f"{file.architecture}.embedding_length"
    return file.get_int(key, minimum=1, maximum=_MAX_WIDTH)


def n_layers(file: GGUFFile) -> int:
    """Reads the number of layers."""
    return file.get_int(f"{file.architecture}.block_count", minimum=1, maximum=_MAX_LAYERS)


def read_experts(
    file: GGUFFile, n_ff: int, router: Router, shared: SharedExpert | None = None
) -> Experts:
    """Reads the expert counts, checked; the widths and the router are the family's to tell."""
    arch = file.architecture
    n_expert = file.get_int(f"{arch}.expert_count", minimum=1, maximum=_MAX_EXPERTS)
    n_expert_used = file.get_int(f"{arch}.expert_used_count", minimum=1, maximum=n_expert)
    return Experts(n_expert, n_expert_used, n_ff, router, shared)


def read_n_ff(file: GGUFFile, key: str, default: int | None = None) -> int:
    """Reads a feed-forward width; ``key`` is complete but for the architecture's prefix."""
    full_key = f"{file.architecture}.{key}"
    if default is None:
        return file.get_int(full_key, minimum=1, maximum=_MAX_WIDTH)
    return file.get_int(full_key, default, minimum=1, maximum=_MAX_WIDTH)
