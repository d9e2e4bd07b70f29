"""Granite 3 and 4 without experts or Mamba: Llama, each part times a number of its own."""

import gguf

from q4run.convert.config import Config
from q4run.convert.families.decoder import Draft, Plan, make_plan, read_sizes, start_metadata
from q4run.convert.source.checkpoint import Checkpoint
from q4run.models.parts import DenseFeedForward

ARCHITECTURES = ("GraniteForCausalLM",)
DEFAULTS = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 2048,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "vocab_size": 32000,
}


def plan(checkpoint: Checkpoint) -> Plan:
    """The GGUF of a Granite checkpoint (architecture ``granite``)."""
    config = checkpoint.config.with_defaults(DEFAULTS)
    sizes = read_sizes(checkpoint, config, default_theta=10000.0)
    feed_forward = DenseFeedForward(config.integer("intermediate_size"))
    metadata = start_metadata("granite", config, sizes, default_eps=1e-6)
    metadata.add_feed_forward_length(feed_forward.n_ff)
    add_multipliers(metadata, config)
    return make_plan(
        Draft(checkpoint, metadata, config, sizes), lambda _: feed_forward, pair_rows=True
    )


def add_multipliers(metadata: gguf.GGUFWriter, config: Config) -> None:
    """Writes what embeddings, scores and the outputs of parts are multiplied by, and what logits
    are divided by."""
    metadata.add_attention_scale(config.number("attention_multiplier", 1.0))
    metadata.add_embedding_scale(config.number("embedding_multiplier", 1.0))
    metadata.add_residual_scale(config.number("residual_multiplier", 1.0))
    metadata.add_logit_scale(config.number("logits_scaling", 1.0))
