"""What the decoders of all families share: sizes, attention, norms, embeddings."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import gguf

from q4run.convert.config import Config
from q4run.convert.families.rope import Rope, read_rope
from q4run.convert.source.checkpoint import Checkpoint
from q4run.convert.tensors import OutputTensor, Role, rope_pairs_of, rows_of, values_of
from q4run.errors import FormatError, UnsupportedError


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
    n_head: int
    n_head_kv: int
    head_dim: int
    tied: bool
    rope: Rope


def read_sizes(checkpoint: Checkpoint, config: Config, default_theta: float) -> Sizes:
    """The common hyperparameters, checked against each other.

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
    _refuse_unknown_features(config)
    return Sizes(
        n_layer=n_layer,
        n_embd=n_embd,
        n_vocab=config.integer("vocab_size"),
        n_head=n_head,
        n_head_kv=n_head_kv,
        head_dim=head_dim,
        tied=config.flag("tie_word_embeddings", False),
        rope=read_rope(config, head_dim, default_theta),
    )


def _refuse_unknown_features(config: Config) -> None:
    for key in ("attention_bias", "mlp_bias"):
        if config.flag(key, False):
            raise UnsupportedError(f"{config.where}: {key} is not supported")
    activation = config.text("hidden_act", "silu")
    if activation != "silu":
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
    metadata.add_head_count(sizes.n_head)
    metadata.add_head_count_kv(sizes.n_head_kv)
    metadata.add_key_length(sizes.head_dim)
    metadata.add_value_length(sizes.head_dim)
    metadata.add_rope_dimension_count(sizes.head_dim)
    metadata.add_rope_freq_base(sizes.rope.theta)
    metadata.add_layer_norm_rms_eps(config.number("rms_norm_eps", default_eps))
    return metadata


def start_tensors(checkpoint: Checkpoint, sizes: Sizes, prefix: str = "") -> Iterator[OutputTensor]:
    """The tensors that belong to no layer."""
    matrix = (sizes.n_vocab, sizes.n_embd)
    embedding = checkpoint.claim(f"{prefix}model.embed_tokens.weight", matrix)
    yield OutputTensor("token_embd.weight", matrix, Role.EMBEDDING, rows_of(embedding))
    # Where the two are tied, a checkpoint may hold the matrix a second time; it is not read.
    head = f"{prefix}lm_head.weight"
    if not sizes.tied or head in checkpoint.tensors:
        output = checkpoint.claim(head, matrix)
        if not sizes.tied:
            yield OutputTensor("output.weight", matrix, Role.OUTPUT, rows_of(output))
    yield norm(checkpoint, "output_norm", f"{prefix}model.norm", sizes.n_embd)
    if sizes.rope.factors is not None:
        shape = sizes.rope.factors.shape
        read = values_of(sizes.rope.factors)
        yield OutputTensor("rope_freqs.weight", shape, Role.ROPE_FACTORS, read)


def attention_tensors(
    checkpoint: Checkpoint, sizes: Sizes, layer: int, base: str, *, pair_rows: bool
) -> Iterator[OutputTensor]:
    """Norms and the four attention matrices of the layer whose names begin with ``base``.

    ``pair_rows``: reorder query and key rows for RoPE over adjacent pairs.
    """
    yield norm(checkpoint, f"blk.{layer}.attn_norm", f"{base}.input_layernorm", sizes.n_embd)
    n_query = sizes.n_head * sizes.head_dim
    n_kv = sizes.n_head_kv * sizes.head_dim
    for name, source, shape in (
        ("attn_q", "q_proj", (n_query, sizes.n_embd)),
        ("attn_k", "k_proj", (n_kv, sizes.n_embd)),
        ("attn_v", "v_proj", (n_kv, sizes.n_embd)),
        ("attn_output", "o_proj", (sizes.n_embd, n_query)),
    ):
        stored = checkpoint.claim(f"{base}.self_attn.{source}.weight", shape)
        reorder = pair_rows and name in ("attn_q", "attn_k")
        read = rope_pairs_of(stored, sizes.head_dim) if reorder else rows_of(stored)
        yield OutputTensor(f"blk.{layer}.{name}.weight", shape, Role.MATRIX, read)
    source = f"{base}.post_attention_layernorm"
    yield norm(checkpoint, f"blk.{layer}.ffn_norm", source, sizes.n_embd)


def dense_ffn(
    checkpoint: Checkpoint, layer: int, base: str, n_embd: int, n_ff: int, suffix: str = ""
) -> Iterator[OutputTensor]:
    """The gate, up and down matrices whose names begin with ``base``."""
    for name, shape in (
        ("gate", (n_ff, n_embd)),
        ("up", (n_ff, n_embd)),
        ("down", (n_embd, n_ff)),
    ):
        read = rows_of(checkpoint.claim(f"{base}.{name}_proj.weight", shape))
        yield OutputTensor(f"blk.{layer}.ffn_{name}{suffix}.weight", shape, Role.MATRIX, read)


def router(
    checkpoint: Checkpoint, layer: int, source: str, n_expert: int, n_embd: int
) -> OutputTensor:
    """The matrix that scores the experts."""
    shape = (n_expert, n_embd)
    read = rows_of(checkpoint.claim(source, shape))
    return OutputTensor(f"blk.{layer}.ffn_gate_inp.weight", shape, Role.ROUTER, read)


def norm(checkpoint: Checkpoint, name: str, source: str, n_embd: int) -> OutputTensor:
    """The weights of an RMS norm."""
    read = rows_of(checkpoint.claim(f"{source}.weight", (n_embd,)))
    return OutputTensor(f"{name}.weight", (n_embd,), Role.NORM, read)
