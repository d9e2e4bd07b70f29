"""Llama 2 and 3, and models of their form (Mistral without a sliding window)."""

from collections.abc import Iterator

from q4run.convert.families.decoder import (
    Draft,
    Plan,
    Sizes,
    decoder_tensors,
    make_plan,
    read_sizes,
    start_metadata,
)
from q4run.convert.families.names import SourceNames
from q4run.convert.families.windows import refuse_sliding_window
from q4run.convert.source.checkpoint import Checkpoint
from q4run.convert.tensors import OutputTensor
from q4run.models.parts import DenseFeedForward

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM")


def plan(checkpoint: Checkpoint) -> Plan:
    """The GGUF of a Llama checkpoint (architecture ``llama``)."""
    config = checkpoint.config
    sizes = read_sizes(checkpoint, config, default_theta=10000.0)
    refuse_sliding_window(config)
    feed_forward = DenseFeedForward(config.integer("intermediate_size"))
    metadata = start_metadata("llama", config, sizes, default_eps=1e-6)
    metadata.add_feed_forward_length(feed_forward.n_ff)
    return make_plan(
        Draft(checkpoint, metadata, config, sizes), lambda _: feed_forward, pair_rows=True
    )


def dense_tensors(
    checkpoint: Checkpoint, sizes: Sizes, n_ff: int, names: SourceNames
) -> Iterator[OutputTensor]:
    """Returns the tensors of a Llama: also of families that compute other things with the same."""
    feed_forward = DenseFeedForward(n_ff)
    return decoder_tensors(checkpoint, sizes, names, lambda _: feed_forward, pair_rows=True)
