"""SmolLM3: Llama whose every fourth layer knows no positions."""

from q4run.convert.families.decoder import Draft, Plan, make_plan, read_sizes, start_metadata
from q4run.convert.families.nope import read_rope_layers
from q4run.convert.families.notes import ignored_by_llama_cpp
from q4run.convert.families.windows import refuse_used_window
from q4run.convert.source.checkpoint import Checkpoint
from q4run.models.nope import ROPE_LAYERS, default_rope_layers
from q4run.models.parts import DenseFeedForward

ARCHITECTURES = ("SmolLM3ForCausalLM",)
_DEFAULTS = {
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "max_position_embeddings": 32768,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
    "vocab_size": 128256,
}


def plan(checkpoint: Checkpoint) -> Plan:
    """The GGUF of a SmolLM3 checkpoint (architecture ``smollm3``)."""
    config = checkpoint.config.with_defaults(_DEFAULTS)
    sizes = read_sizes(checkpoint, config, default_theta=2000000.0)
    refuse_used_window(config)
    n_ff = config.integer("intermediate_size")
    metadata = start_metadata("smollm3", config, sizes, default_eps=1e-6)
    metadata.add_feed_forward_length(n_ff)
    rope_layers = read_rope_layers(config, sizes.n_layer)
    notes = []
    if rope_layers != default_rope_layers(sizes.n_layer):
        metadata.add_array(f"smollm3.{ROPE_LAYERS}", rope_layers)
        notes = ignored_by_llama_cpp([f"smollm3.{ROPE_LAYERS}"])
    feed_forward = DenseFeedForward(n_ff)
    return make_plan(
        Draft(checkpoint, metadata, config, sizes),
        lambda _: feed_forward,
        pair_rows=True,
        notes=notes,
    )
