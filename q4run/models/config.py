"""What a model is, in numbers: read from GGUF by a family file, and what layers are built from."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

from gguf import MODEL_TENSOR

from q4run.errors import FormatError, UnsupportedError
from q4run.gguf_file import GGUFFile
from q4run.models.names import layer_of
from q4run.models.parts import (
    BIAS,
    WEIGHT,
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
MAX_WIDTH = 1 << 20
_MAX_EXPERTS = 1 << 16

Element = TypeVar("Element", int, bool)


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
    n_mtp_layers: int = 0  # blocks of the file after the layers, which decoding does not need

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

    def skips(self, name: str) -> bool:
        """Tells whether a tensor belongs to the blocks of multi-token prediction, not read."""
        layer, n_layers = layer_of(name), len(self.layers)
        return layer is not None and n_layers <= layer < n_layers + self.n_mtp_layers

    def is_resident(self, name: str) -> bool:
        """Tells whether a tensor of the file is held in RAM while the model runs."""
        return name not in self.streamed and not self.skips(name)

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
        n_mtp_layers=n_mtp_layers(file),
    )


def read_attention(
    file: GGUFFile, rope: RopeDefaults = ROPE_DEFAULTS, layer: int | None = None
) -> Attention:
    """Reads heads and rotation, and which biases the file has; the rest is the family's to tell.

    rope: what holds where the file does not say; layer: whose, None: of all, which then are alike.
    Raises FormatError where a key is missing or the numbers contradict each other,
    UnsupportedError for an unknown scaling of RoPE, or for layers that differ if none is named.
    """
    n_embd = read_n_embd(file)
    n_head = _read_width(file, "attention.head_count", None, layer)
    n_head_kv = _read_width(file, "attention.head_count_kv", n_head, layer)
    key_dim = _read_width(file, "attention.key_length", n_embd // n_head)
    value_dim = _read_width(file, "attention.value_length", key_dim)
    if n_head % n_head_kv:
        raise FormatError(f"{file.path}: {n_head} heads do not share {n_head_kv} KV heads evenly")
    if key_dim < 1:
        raise FormatError(f"{file.path}: key heads of {key_dim}")
    attention = Attention(n_head, n_head_kv, key_dim, value_dim, read_rope(file, key_dim, rope))
    first = layer or 0
    return replace(
        attention,
        fused_qkv=has_tensor(file, MODEL_TENSOR.ATTN_QKV, first),
        qkv_bias=has_tensor(file, MODEL_TENSOR.ATTN_Q, first, BIAS)
        or has_tensor(file, MODEL_TENSOR.ATTN_QKV, first, BIAS),
        out_bias=has_tensor(file, MODEL_TENSOR.ATTN_OUT, first, BIAS),
    )


def read_n_embd(file: GGUFFile) -> int:
    """Reads the width of the stream."""
    return _read_width(file, "embedding_length")


def n_layers(file: GGUFFile) -> int:
    """Reads the number of layers that run: without those of multi-token prediction."""
    return n_blocks(file) - n_mtp_layers(file)


def n_blocks(file: GGUFFile) -> int:
    """Reads how many blocks the file counts, whether its last ones are there or not."""
    return file.get_int(f"{file.architecture}.block_count", minimum=1, maximum=_MAX_LAYERS)


def n_mtp_layers(file: GGUFFile) -> int:
    """Reads how many of the last blocks predict further tokens (MTP, NextN) and do not run."""
    key = f"{file.architecture}.nextn_predict_layers"
    return file.get_int(key, 0, maximum=n_blocks(file) - 1)


def read_experts(
    file: GGUFFile, n_ff: int, router: Router, shared: SharedExpert | None = None
) -> Experts:
    """Reads the expert counts, checked, and whether gate and up are one stack and have biases.

    The widths and the router are the family's to tell. Raises FormatError where the router's
    groups do not fit the counts.
    """
    arch = file.architecture
    n_expert = file.get_int(f"{arch}.expert_count", minimum=1, maximum=_MAX_EXPERTS)
    n_expert_used = file.get_int(f"{arch}.expert_used_count", minimum=1, maximum=n_expert)
    if router.n_group > 1:
        size, rest = divmod(n_expert, router.n_group)
        if rest or size < 2 or size * router.n_group_used < n_expert_used:
            raise FormatError(
                f"{file.path}: {n_expert_used} of {n_expert} experts cannot be chosen from"
                f" {router.n_group_used} of {router.n_group} groups"
            )
    return Experts(
        n_expert,
        n_expert_used,
        n_ff,
        router,
        shared,
        biases=in_any_layer(file, MODEL_TENSOR.FFN_DOWN_EXP, BIAS),
        fused_gate_up=in_any_layer(file, MODEL_TENSOR.FFN_GATE_UP_EXP),
    )


def read_n_ff(
    file: GGUFFile, key: str, default: int | None = None, layer: int | None = None
) -> int:
    """Reads a feed-forward width; ``key`` is complete but for the architecture's prefix.

    The file has one number or a list with one for each layer; ``layer`` as in `read_attention`.
    """
    return _read_width(file, key, default, layer)


def has_tensor(
    file: GGUFFile, kind: MODEL_TENSOR, layer: int | None = None, suffix: str = WEIGHT
) -> bool:
    """Tells whether the file has a tensor that some models of a family have and others not."""
    return tensor_name(kind, layer, suffix) in file.tensors


def in_any_layer(file: GGUFFile, kind: MODEL_TENSOR, suffix: str = WEIGHT) -> bool:
    """Tells whether any of the layers that run has such a tensor."""
    return any(has_tensor(file, kind, layer, suffix) for layer in range(n_layers(file)))


def read_per_layer(file: GGUFFile, key: str, values: list[Element]) -> list[Element]:
    """Returns a list of the file, one entry for each layer that runs.

    Raises FormatError where it has another length than the layers or the blocks.
    """
    if len(values) not in (n_layers(file), n_blocks(file)):
        raise FormatError(
            f"{file.path}: {file.architecture}.{key} has {len(values)} entries for"
            f" {n_blocks(file)} layers"
        )
    return values[: n_layers(file)]


def _read_width(
    file: GGUFFile, key: str, default: int | None = None, layer: int | None = None
) -> int:
    full_key = f"{file.architecture}.{key}"
    if file.metadata.array(full_key) is None:
        return file.get_int(
            full_key, ... if default is None else default, minimum=1, maximum=MAX_WIDTH
        )
    widths = read_per_layer(file, key, file.get_array(full_key, int))
    if layer is None and len(set(widths)) > 1:
        raise UnsupportedError(f"{file.path}: {full_key} differs from layer to layer")
    width = widths[layer or 0]
    if not 1 <= width <= MAX_WIDTH:
        raise FormatError(f"{file.path}: {full_key} is {width} in layer {layer or 0}")
    return width
