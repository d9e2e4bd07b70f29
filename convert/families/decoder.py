"""What the decoders of all families share: sizes, attention, norms, embeddings."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import gguf
from gguf import MODEL_TENSOR

from q4run.convert.config import Config
from q4run.convert.families.experts import USUAL_EXPERTS, ExpertSource, claim_experts, with_experts
from q4run.convert.families.names import NO_MORE, SourceNames, output_tensor, stored
from q4run.convert.families.notes import left_out_notes
from q4run.convert.families.rope import StoredRope, read_rope
from q4run.convert.source.checkpoint import Checkpoint
from q4run.convert.tensors import OutputTensor, rope_pairs_of, values_of
from q4run.errors import FormatError, UnsupportedError
from q4run.models.parts import Attention, Embedding, Experts, FeedForward, Head

# What old checkpoints hold of RoPE is computed anew.
IGNORABLE = r"rotary_emb\.inv_freq$"


@dataclass
class Plan:
    """What a checkpoint becomes: its hyperparameters as GGUF keys, its tensors in file order.

    ``metadata`` collects keys and values (it never opens a file); ``notes`` are lines for the
    person who converts.
    """

    metadata: gguf.GGUFWriter
    tensors: list[OutputTensor]
    n_vocab: int
    config: Config
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Sizes:
    """The hyperparameters every decoder of the Llama kind has."""

    n_layer: int
    n_embd: int
    n_vocab: int
    attention: Attention
    tied: bool
    rope: StoredRope

    def with_attention(self, **changes: Any) -> "Sizes":
        """The same with other fields of `Attention`."""
        return replace(self, attention=replace(self.attention, **changes))


def read_sizes(
    checkpoint: Checkpoint,
    config: Config,
    default_theta: float,
    *,
    partial_rotary: bool = False,
    known: Collection[str] = (),
    rope_layers: str | None = None,
) -> Sizes:
    """The common hyperparameters, checked against each other.

    partial_rotary: whether the family can rotate a part of each head; known: keys
    (``attention_bias``, ``mlp_bias``, ``hidden_act``) that the family obeys itself; rope_layers:
    the type of layers whose rotation is read, where it differs by type.
    Raises ``FormatError`` for values that contradict each other, ``UnsupportedError`` for features
    the runtime does not have.
    """
    n_layer = config.integer("num_hidden_layers")
    checkpoint.check_count("num_hidden_layers", n_layer)
    n_embd = config.integer("hidden_size")
    n_head = config.integer("num_attention_heads")
    n_head_kv = config.integer("num_key_value_heads", n_head)
    if n_head % n_head_kv:
        raise config.bad("num_key_value_heads", f"a divisor of num_attention_heads ({n_head})")
    if "head_dim" not in config and n_embd % n_head:
        raise config.bad("hidden_size", f"a multiple of num_attention_heads ({n_head})")
    head_dim = config.integer("head_dim", n_embd // n_head)
    if head_dim % 2:
        raise FormatError(f"{config.where}: a head of {head_dim} values cannot be rotated in pairs")
    _refuse_unknown_features(config, known)
    rope = read_rope(config, head_dim, default_theta, rope_layers)
    if rope.rope.dim != head_dim and not partial_rotary:
        raise UnsupportedError(f"{config.where}: partial_rotary_factor is not supported")
    return Sizes(
        n_layer=n_layer,
        n_embd=n_embd,
        n_vocab=config.integer("vocab_size"),
        attention=Attention(n_head, n_head_kv, head_dim, head_dim),
        tied=config.flag("tie_word_embeddings", False),
        rope=rope,
    )


def _refuse_unknown_features(config: Config, known: Collection[str]) -> None:
    for key in ("attention_bias", "mlp_bias"):
        if key not in known and config.flag(key, False):
            raise UnsupportedError(f"{config.where}: {key} is not supported")
    activation = config.text("hidden_act", "silu")
    if "hidden_act" not in known and activation != "silu":
        raise UnsupportedError(
            f"{config.where}: hidden_act '{activation}' is not supported (known: silu)"
        )


def start_metadata(
    architecture: str, config: Config, sizes: Sizes, default_eps: float
) -> gguf.GGUFWriter:
    """The keys that all families write, under ``architecture``."""
    metadata = gguf.GGUFWriter(None, architecture)
    metadata.add_block_count(sizes.n_layer)
    metadata.add_context_length(config.integer("max_position_embeddings"))
    metadata.add_embedding_length(sizes.n_embd)
    metadata.add_vocab_size(sizes.n_vocab)
    attention = sizes.attention
    metadata.add_head_count(attention.n_head)
    metadata.add_head_count_kv(attention.n_head_kv)
    metadata.add_key_length(attention.key_dim)
    metadata.add_value_length(attention.value_dim)
    sizes.rope.add_keys(metadata)
    metadata.add_layer_norm_rms_eps(config.number("rms_norm_eps", default_eps))
    return metadata


def start_tensors(
    checkpoint: Checkpoint, sizes: Sizes, names: SourceNames
) -> Iterator[OutputTensor]:
    """Yields the tensors that belong to no layer."""
    table = Embedding(sizes.n_vocab).tensors(sizes.n_embd)[0]
    yield stored(checkpoint, table, names)
    norm, *matrix = Head(sizes.n_vocab, sizes.tied).tensors(sizes.n_embd)
    if sizes.tied:
        # A checkpoint may hold the matrix a second time; it is not read.
        again = names.of(Head(sizes.n_vocab, tied=False).matrix(sizes.n_embd))
        if again in checkpoint.tensors:
            checkpoint.claim(again, table.shape)
    for tensor in (*matrix, norm):
        yield stored(checkpoint, tensor, names)
    for tensor, values in sizes.rope.tensors:
        yield output_tensor(tensor, values_of(values))


def attention_tensors(
    checkpoint: Checkpoint, sizes: Sizes, layer: int, names: SourceNames, *, pair_rows: bool
) -> Iterator[OutputTensor]:
    """Yields what a layer's attention reads.

    ``pair_rows``: reorder query and key rows for RoPE over adjacent pairs.
    """
    for tensor in sizes.attention.tensors(sizes.n_embd, layer):
        if pair_rows and tensor.kind in (MODEL_TENSOR.ATTN_Q, MODEL_TENSOR.ATTN_K):
            source = checkpoint.claim(names.of(tensor), tensor.shape)
            yield output_tensor(tensor, rope_pairs_of(source, sizes.attention.key_dim))
        else:
            yield stored(checkpoint, tensor, names)


def decoder_tensors(
    checkpoint: Checkpoint,
    sizes: Sizes,
    names: SourceNames,
    feed_forward: Callable[[int], FeedForward],
    *,
    pair_rows: bool = False,
    experts: ExpertSource = USUAL_EXPERTS,
) -> Iterator[OutputTensor]:
    """Yields all tensors of a decoder whose layers are attention and a feed-forward.

    feed_forward: tells what layer i has; pair_rows: as in `attention_tensors`; experts: where the
    checkpoint keeps them.
    """
    yield from start_tensors(checkpoint, sizes, names)
    for layer in range(sizes.n_layer):
        yield from attention_tensors(checkpoint, sizes, layer, names, pair_rows=pair_rows)
        part = feed_forward(layer)
        declared = part.tensors(sizes.n_embd, layer)
        if isinstance(part, Experts):
            claim = partial(claim_experts, checkpoint, part, sizes.n_embd, layer, experts)
            yield from with_experts(checkpoint, declared, names, claim)
        else:
            yield from (stored(checkpoint, tensor, names) for tensor in declared)


class Draft(NamedTuple):
    """A plan that lacks its tensors: where they come from, and the metadata, complete."""

    checkpoint: Checkpoint
    metadata: gguf.GGUFWriter
    config: Config
    sizes: Sizes


def make_plan(
    draft: Draft,
    feed_forward: Callable[[int], FeedForward],
    *,
    pair_rows: bool = False,
    experts: ExpertSource = USUAL_EXPERTS,
    more_names: Mapping[MODEL_TENSOR, str] = NO_MORE,
    notes: Sequence[str] = (),
    mtp: str = "",
) -> Plan:
    """Plans a decoder; the parameters are those of `decoder_tensors`, `SourceNames` and
    `finish_plan`.

    Raises as `Checkpoint.check_all_claimed` where tensors are missing or left over.
    """
    checkpoint, metadata, _, sizes = draft
    names = SourceNames(checkpoint, metadata.arch, sizes.n_layer, more_names)
    tensors = decoder_tensors(
        checkpoint, sizes, names, feed_forward, pair_rows=pair_rows, experts=experts
    )
    return finish_plan(draft, tensors, notes=notes, mtp=mtp)


def finish_plan(
    draft: Draft,
    tensors: Iterable[OutputTensor],
    *,
    notes: Sequence[str] = (),
    mtp: str = "",
    vision: str = "",
) -> Plan:
    """Makes a plan of all tensors; ``mtp`` and ``vision``: patterns of those that are left out,
    which a note says.

    Raises as `Checkpoint.check_all_claimed` where tensors are missing or left over.
    """
    checkpoint, metadata, config, sizes = draft
    tensors = list(tensors)
    patterns = [pattern for pattern in (IGNORABLE, mtp, vision) if pattern]
    left_out = checkpoint.check_all_claimed("|".join(patterns))
    notes = [*sizes.rope.notes(metadata.arch), *notes]
    notes += left_out_notes(left_out, mtp=mtp, vision=vision)
    return Plan(metadata, tensors, sizes.n_vocab, config, notes)


def mtp_layers(config: Config, n_layer: int, key: str = "num_nextn_predict_layers") -> str:
    """Returns a pattern of the tensors of layers that follow the last of the model's own."""
    n_mtp = config.integer(key, 1, low=0)
    numbers = "|".join(str(layer) for layer in range(n_layer, n_layer + min(n_mtp, 16)))
    return rf"^model\.layers\.({numbers})\." if numbers else ""
