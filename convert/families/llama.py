"""Llama 2 and 3, and models of their form (Mistral without a sliding window)."""

from collections.abc import Iterator

from q4run.convert.config import Config
from q4run.convert.families.decoder import (
    Plan,
    Sizes,
    decoder_tensors,
    read_sizes,
    start_metadata,
)
from q4run.convert.families.names import SourceNames
from q4run.convert.source.checkpoint import Checkpoint
from q4run.convert.tensors import OutputTensor
from q4run.errors import UnsupportedError
from q4run.models.parts import DenseFeedForward

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM")
IGNORABLE = r"rotary_emb\.inv_freq$"


def plan(checkpoint: Checkpoint) -> Plan:
    """The GGUF of a Llama checkpoint (architecture ``llama``)."""
    config = checkpoint.config
    sizes = read_sizes(checkpoint, config, default_theta=10000.0)
    refuse_sliding_window(config)
    n_ff = config.integer("intermediate_size")
    metadata = start_metadata("llama", config, sizes, default_eps=1e-6)
    metadata.add_feed_forward_length(n_ff)
    names = SourceNames(checkpoint, "llama", sizes.n_layer)
    tensors = list(dense_tensors(checkpoint, sizes, n_ff, names))
    checkpoint.check_all_claimed(IGNORABLE)
    return Plan(metadata, tensors, sizes.n_vocab, config, sizes.rope.notes("llama"))


def refuse_sliding_window(config: Config) -> None:
    """A window no shorter than the longest context changes nothing; a shorter one is unknown."""
    window = config.integer("sliding_window", 0, low=0)
    if 0 < window < config.integer("max_position_embeddings"):
        raise UnsupportedError(f"{config.where}: sliding_window ({window}) is not supported")


def dense_tensors(
    checkpoint: Checkpoint, sizes: Sizes, n_ff: int, names: SourceNames
) -> Iterator[OutputTensor]:
    """Returns the tensors of a Llama: also of families that compute other things with the same."""
    feed_forward = DenseFeedForward(n_ff)
    return decoder_tensors(checkpoint, sizes, names, lambda _: feed_forward, pair_rows=True)
