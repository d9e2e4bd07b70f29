"""gpt-oss: sinks, biases everywhere, a window in every second layer (arXiv:2508.10925)."""

from dataclasses import replace

from gguf import MODEL_TENSOR

from q4run.gguf_file import GGUFFile
from q4run.models.config import (
    ModelConfig,
    n_layers,
    read_attention,
    read_decoder,
    read_experts,
    read_n_ff,
)
from q4run.models.keys import (
    DECODER_KEYS,
    EXPERT_KEYS,
    ROUTER_KEYS,
    WINDOW_KEYS,
    WINDOW_PATTERN_KEYS,
    FamilyKeys,
)
from q4run.models.parts import Activation, Layer, Router, Scores
from q4run.models.readers import read_router, read_window, read_window_pattern
from q4run.models.rope import RopeForm
from q4run.models.rope_keys import RopeDefaults

ARCHITECTURE = "gpt-oss"
WINDOW_PERIOD = 2
ROUTER = Router(Scores.CHOSEN_SOFTMAX, renormalise=False, bias=True)
KEYS = FamilyKeys(
    applied=DECODER_KEYS
    | EXPERT_KEYS
    | ROUTER_KEYS
    | WINDOW_KEYS
    | WINDOW_PATTERN_KEYS
    | {"feed_forward_length"},
    fixed={},
)
# Its YaRN ramps between parts of pairs, which GGUF has no key for.
_ROPE = RopeDefaults(theta=150000.0, form=RopeForm.NEOX, yarn_truncate=False)


def read_config(file: GGUFFile) -> ModelConfig:
    """Layers with a window and layers that see everything take turns."""
    seeing_all = replace(read_attention(file, _ROPE), sinks=True)
    local = replace(seeing_all, window=read_window(file))
    has_window = read_window_pattern(file, n_layers(file), WINDOW_PERIOD)
    n_ff = read_n_ff(file, "expert_feed_forward_length", read_n_ff(file, "feed_forward_length", 1))
    experts = replace(
        read_experts(file, n_ff, read_router(file, ROUTER)),
        activation=Activation.CLAMPED_SWIGLU,
        norm=MODEL_TENSOR.ATTN_POST_NORM,
    )
    return read_decoder(file, lambda i: Layer(local if has_window[i] else seeing_all, experts))
