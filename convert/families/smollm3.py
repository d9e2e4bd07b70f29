"""SmolLM3: Llama whose every fourth layer knows no positions."""

from q4run.convert.config import Config
from q4run.convert.families.decoder import IGNORABLE, Plan, read_sizes, start_metadata
from q4run.convert.families.llama import dense_tensors
from q4run.convert.families.names import SourceNames
from q4run.convert.families.windows import refuse_used_window
from q4run.convert.source.checkpoint import Checkpoint
from q4run.errors import FormatError
from q4run.models.smollm3 import NOPE_INTERVAL, ROPE_LAYERS, default_rope_layers

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
    notes = sizes.rope.notes("smollm3")
    rope_layers = _rope_layers(config, sizes.n_layer)
    if rope_layers != default_rope_layers(sizes.n_layer):
        metadata.add_array(f"smollm3.{ROPE_LAYERS}", rope_layers)
        notes.append(
            f"llama.cpp ignores smollm3.{ROPE_LAYERS}: its results with this file differ from"
            " q4run's"
        )
    names = SourceNames(checkpoint, "smollm3", sizes.n_layer)
    tensors = list(dense_tensors(checkpoint, sizes, n_ff, names))
    checkpoint.check_all_claimed(IGNORABLE)
    return Plan(metadata, tensors, sizes.n_vocab, config, notes)


def _rope_layers(config: Config, n_layer: int) -> list[int]:
    """1 for each layer with RoPE, 0 for one without, as ``no_rope_layers`` (sic) has it."""
    layers = config.items("no_rope_layers", int)
    if layers is None:
        interval = config.integer("no_rope_layer_interval", NOPE_INTERVAL)
        return [int((i + 1) % interval != 0) for i in range(n_layer)]
    if len(layers) < n_layer:
        raise FormatError(
            f"{config.where}: no_rope_layers has {len(layers)} entries for {n_layer} layers"
        )
    return [int(layer != 0) for layer in layers[:n_layer]]
