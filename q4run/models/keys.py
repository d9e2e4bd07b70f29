"""Every metadata key of an architecture that can change what a model computes, and what q4run does.

A family's file says in ``KEYS`` which it applies. Another is refused by name and value where
llama.cpp applies it to that family; where llama.cpp takes no notice of it, a line tells so, as for
keys that nobody knows. A value that changes nothing passes silently. Names are without the
architecture that stands before them in a file.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from q4run.errors import UnsupportedError
from q4run.gguf_file import GGUFFile
from q4run.models.rope_keys import ROPE_KEYS

# What every decoder of `config.read_decoder` obeys.
DECODER_KEYS = ROPE_KEYS | {
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "nextn_predict_layers",
}
# What `config.read_experts` obeys, and the width that families read beside it.
EXPERT_KEYS = frozenset({"expert_count", "expert_used_count", "expert_feed_forward_length"})
# What the readers of the same names in `readers` obey.
ROUTER_KEYS = frozenset(
    {
        "expert_gating_func",
        "expert_group_count",
        "expert_group_used_count",
        "expert_weights_norm",
        "expert_weights_scale",
    }
)
SHARED_KEYS = frozenset({"expert_shared_count", "expert_shared_feed_forward_length"})
LEADING_DENSE_KEYS = frozenset({"leading_dense_block_count"})
# What `readers.read_moe` obeys.
MOE_KEYS = (
    DECODER_KEYS
    | EXPERT_KEYS
    | ROUTER_KEYS
    | SHARED_KEYS
    | LEADING_DENSE_KEYS
    | {"feed_forward_length"}
)
INTERLEAVE_KEYS = frozenset({"interleave_moe_layer_step"})
WINDOW_KEYS = frozenset({"attention.sliding_window"})
WINDOW_PATTERN_KEYS = frozenset({"attention.sliding_window_pattern"})
MULTIPLIER_KEYS = frozenset({"attention.scale", "embedding_scale", "logit_scale", "residual_scale"})
SOFT_CAP_KEYS = frozenset({"final_logit_softcapping"})

# Keys that change no logits: they describe, or say something only together with another key.
_SILENT = frozenset(
    {
        "classifier.output_labels",
        "decoder_start_token_id",
        "expert_group_used_count",
        "pooling_type",
        "rope.dimension_sections",  # which of a picture's positions turns a pair; in text all agree
        "tensor_data_layout",
        "vocab_size",
    }
)

_NOTHING = (0,)  # also what a list of zeros or of False says
_ONCE = (0, 1)  # a scale of 1; llama.cpp takes a 0 for none

# Keys that can change what is computed, with the values that change nothing.
_CHANGES_NOTHING: dict[str, tuple[Any, ...]] = {
    "activation_sparsity_scale": _NOTHING,
    "altup.active_idx": (),
    "altup.num_inputs": _ONCE,
    "attention.causal": (True,),
    "attention.clamp_kqv": _NOTHING,
    "attention.decay_lora_rank": _NOTHING,
    "attention.gate_lora_rank": _NOTHING,
    "attention.group_norm_epsilon": (),
    "attention.group_norm_groups": _NOTHING,
    "attention.iclr_lora_rank": _NOTHING,
    "attention.indexer.head_count": _NOTHING,
    "attention.indexer.key_length": _NOTHING,
    "attention.indexer.top_k": _NOTHING,
    "attention.key_length_mla": _NOTHING,
    "attention.key_length_swa": _NOTHING,
    "attention.kv_lora_rank": _NOTHING,
    "attention.layer_norm_epsilon": (),
    "attention.max_alibi_bias": _NOTHING,
    "attention.output_scale": _ONCE,
    "attention.q_lora_rank": _NOTHING,
    "attention.relative_buckets_count": _NOTHING,
    "attention.scale": _NOTHING,
    "attention.shared_kv_layers": _NOTHING,
    "attention.sliding_window": _NOTHING,
    "attention.sliding_window_pattern": _NOTHING,
    "attention.temperature_length": _NOTHING,
    "attention.temperature_scale": _NOTHING,
    "attention.value_length_mla": _NOTHING,
    "attention.value_length_swa": _NOTHING,
    "attention.value_residual_mix_lora_rank": _NOTHING,
    "attn_logit_softcapping": _NOTHING,
    "convnext.block_count": _NOTHING,
    "convnext.embedding_length": _NOTHING,
    "decoder_block_count": _NOTHING,
    "embedding_length_out": _NOTHING,
    "embedding_length_per_layer_input": _NOTHING,
    "embedding_scale": _ONCE,
    "expert_chunk_feed_forward_length": _NOTHING,
    "expert_count": _NOTHING,
    "expert_feed_forward_length": _NOTHING,
    "expert_gating_func": _NOTHING,
    "expert_group_count": _ONCE,
    "expert_group_scale": _ONCE,
    "expert_shared_count": _NOTHING,
    "expert_shared_feed_forward_length": _NOTHING,
    "expert_used_count": _NOTHING,
    "expert_weights_norm": (False,),
    "expert_weights_scale": _ONCE,
    "experts_per_group": _NOTHING,
    "features_length": _NOTHING,
    "feed_forward_length": (),
    "final_logit_softcapping": _NOTHING,
    "full_attention_interval": _ONCE,
    "interleave_moe_layer_step": _ONCE,
    "kda.head_dim": _NOTHING,
    "leading_dense_block_count": _NOTHING,
    "logit_scale": _ONCE,
    "moe_every_n_layers": _ONCE,
    "moe_latent_size": _NOTHING,
    "n_deepstack_layers": _NOTHING,
    "nextn_predict_layers": _NOTHING,
    "posnet.block_count": _NOTHING,
    "posnet.embedding_length": _NOTHING,
    "rescale_every_n_layers": _NOTHING,
    "residual_scale": _ONCE,
    "rope.dimension_count_swa": _NOTHING,
    "rope.freq_base_swa": _NOTHING,
    "rope.scaling.alpha": _ONCE,
    "rope.scaling.finetuned": (True,),
    "router_logit_softcapping": _NOTHING,
    "shortconv.l_cache": _NOTHING,
    "ssm.conv_kernel": _NOTHING,
    "ssm.dt_b_c_rms": (False,),
    "ssm.group_count": _NOTHING,
    "ssm.inner_size": _NOTHING,
    "ssm.state_size": _NOTHING,
    "ssm.time_step_rank": _NOTHING,
    "swiglu_clamp_exp": _NOTHING,
    "swiglu_clamp_shexp": _NOTHING,
    "swin_norm": (False,),
    "time_decay_extra_dim": _NOTHING,
    "time_mix_extra_dim": _NOTHING,
    "token_shift_count": _NOTHING,
    "use_parallel_residual": (False,),
    "wkv.head_size": _NOTHING,
}
_CHANGES_NOTHING |= {f"dense_{n}_feat_{end}": () for n in (2, 3) for end in ("in", "out")}

# What llama.cpp applies to every family.
_APPLIED_BY_LLAMA_CPP = frozenset({"attention.causal", "expert_group_count"})


class Decision(Enum):
    """What becomes of a key that stands in a file."""

    APPLIED = "the family computes with it"
    REFUSED = "llama.cpp applies it and q4run cannot"
    TOLD = "llama.cpp takes no notice of it, nor does q4run"
    SILENT = "it changes no logits"
    UNKNOWN = "nobody's"


@dataclass(frozen=True)
class FamilyKeys:
    """What a family does with metadata keys.

    ``applied``: those it computes with. ``fixed``: what it computes whatever a file says, so that a
    key which says the same passes silently. ``refused``: those that llama.cpp applies to this
    family, beside the few that it applies to all, and q4run does not.
    """

    applied: frozenset[str]
    fixed: Mapping[str, tuple[Any, ...]]
    refused: frozenset[str] = frozenset()

    def decide(self, key: str) -> Decision:
        """Tells what becomes of a key of another value than those that change nothing."""
        if key in self.applied:
            return Decision.APPLIED
        if key in self.refused | _APPLIED_BY_LLAMA_CPP:
            return Decision.REFUSED
        if key in _SILENT:
            return Decision.SILENT
        return Decision.TOLD if key in _CHANGES_NOTHING else Decision.UNKNOWN

    def changes_nothing(self, key: str, value: Any) -> bool:
        """Tells whether a value, or each of a list, is what is computed without the key."""
        neutral = (*_CHANGES_NOTHING.get(key, ()), *self.fixed.get(key, ()))
        values = value if isinstance(value, list) else [value]
        return all(one in neutral for one in values)


def check_keys(file: GGUFFile, keys: FamilyKeys) -> None:
    """Raises UnsupportedError for a key that llama.cpp applies to this family and q4run cannot."""
    for key, value in _left(file, keys, Decision.REFUSED):
        raise UnsupportedError(
            f"{file.path}: {file.architecture}.{key} is {_shown(value)}, which q4run cannot apply"
            f" to a {file.architecture} model"
        )


def notes_on_keys(file: GGUFFile, keys: FamilyKeys) -> list[str]:
    """Returns lines about the keys that do not do what one may think they do."""
    told, unknown = (
        [f"{_shown(key)} ({_shown(value)})" for key, value in _left(file, keys, decision)]
        for decision in (Decision.TOLD, Decision.UNKNOWN)
    )
    lines = []
    if told:
        lines.append(
            f"The file says {_listed(told)}: llama.cpp takes no notice of that in a"
            f" {file.architecture} model, nor does q4run."
        )
    if unknown:
        lines.append(
            f"The file says {_listed(unknown)}, which q4run does not know: if that changes what"
            " the model computes, its answers are wrong."
        )
    return lines


def _left(file: GGUFFile, keys: FamilyKeys, decision: Decision) -> Iterator[tuple[str, Any]]:
    """The keys of the file's architecture for which that was decided, with their values."""
    prefix = f"{file.architecture}."
    for name in file.metadata:
        key = name.removeprefix(prefix)
        if name.startswith(prefix) and keys.decide(key) is decision:
            value = file.metadata[name]
            if not keys.changes_nothing(key, value):
                yield key, value


_MOST_LISTED = 8
_MOST_SHOWN = 40


def _listed(items: list[str]) -> str:
    more = len(items) - _MOST_LISTED
    return ", ".join(items[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "")


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"{len(value)} values"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return ascii(text)[1:-1][:_MOST_SHOWN]
