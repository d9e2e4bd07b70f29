"""Hunyuan-A13B: queries and keys normed after they are rotated, experts in every layer."""

from q4run.convert.config import Config
from q4run.convert.families.decoder import Draft, Plan, make_plan, read_sizes, start_metadata
from q4run.convert.families.experts import add_expert_keys, read_expert_counts
from q4run.convert.source.checkpoint import Checkpoint
from q4run.errors import UnsupportedError
from q4run.models.parts import Experts, QKNorm, Router, SharedExpert

ARCHITECTURES = ("HunYuanMoEV1ForCausalLM",)
_DEFAULTS = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 2048,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "vocab_size": 290943,
}


def plan(checkpoint: Checkpoint) -> Plan:
    """The GGUF of a Hunyuan-A13B checkpoint (architecture ``hunyuan-moe``)."""
    config = _with_theta(_of_all_layers(checkpoint.config.with_defaults(_DEFAULTS)))
    sizes = read_sizes(checkpoint, config, default_theta=10000.0)
    sizes = sizes.with_attention(qk_norm=QKNorm.WEIGHTED_AFTER_ROPE)
    n_ff = config.integer(config.key_of("moe_intermediate_size", "intermediate_size"))
    if n_ff != config.integer("intermediate_size"):
        raise UnsupportedError(f"{config.where}: moe_intermediate_size is not intermediate_size")
    n_shared = config.integer("num_shared_expert", 1)
    counts = read_expert_counts(config, "num_experts", (1, 1), "moe_topk")
    experts = Experts(*counts, n_ff, Router(), SharedExpert(n_shared * n_ff))
    metadata = start_metadata("hunyuan-moe", config, sizes, default_eps=1e-5)
    metadata.add_feed_forward_length(n_ff)
    add_expert_keys(metadata, experts)
    return make_plan(Draft(checkpoint, metadata, config, sizes), lambda _: experts)


def _of_all_layers(config: Config) -> Config:
    """The same with one number where there is a list of equal ones for the layers.

    Raises UnsupportedError where they differ.
    """
    values = dict(config.values)
    for key in ("moe_topk", "num_shared_expert", "moe_intermediate_size"):
        listed = values.get(key)
        if isinstance(listed, list) and listed:
            if any(value != listed[0] for value in listed):
                raise UnsupportedError(f"{config.where}: {key} differs from layer to layer")
            values[key] = listed[0]
    return Config(values, config.where)


def _with_theta(config: Config) -> Config:
    """The same with the base that a fixed ``alpha`` stretches, which makes "dynamic" scaling none
    (`transformers`' ``compute_ntk_alpha_rope_parameters``)."""
    key = config.key_of("rope_scaling", "rope_parameters")
    rope = config.section(key)
    if (
        rope is None
        or "alpha" not in rope
        or rope.text("rope_type", rope.text("type", "")) != "dynamic"
    ):
        return config
    dim = config.integer(
        "head_dim", config.integer("hidden_size") // config.integer("num_attention_heads")
    )
    if dim < 4:
        raise config.bad("head_dim", "at least 4")
    theta = rope.number("rope_theta", config.number("rope_theta", 10000.0))
    theta *= rope.number("alpha") ** (dim / (dim - 2))
    plain = {"rope_type": "default", "rope_theta": theta}
    return Config({**config.values, key: plain}, config.where)
