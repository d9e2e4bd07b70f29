"""Gemma 3: norms on both sides of each part, windows in five layers of six (arXiv:2503.19786)."""

import math
from dataclasses import replace

from q4run.gguf_file import GGUFFile
from q4run.models.config import (
    ModelConfig,
    n_layers,
    read_attention,
    read_decoder,
    read_n_embd,
    read_n_ff,
)
from q4run.models.keys import (
    DECODER_KEYS,
    SOFT_CAP_KEYS,
    WINDOW_KEYS,
    WINDOW_PATTERN_KEYS,
    FamilyKeys,
)
from q4run.models.parts import Activation, DenseFeedForward, Layer, QKNorm
from q4run.models.readers import read_soft_cap, read_window, read_window_pattern
from q4run.models.rope import Rope, RopeForm
from q4run.models.rope_keys import RopeDefaults

ARCHITECTURE = "gemma3"
WINDOW_PERIOD = 6
LOCAL_THETA = 10000.0
LOCAL_THETA_KEY = "rope.freq_base_swa"
KEYS = FamilyKeys(
    applied=DECODER_KEYS
    | SOFT_CAP_KEYS
    | WINDOW_KEYS
    | WINDOW_PATTERN_KEYS
    | {"attention.scale", "feed_forward_length", LOCAL_THETA_KEY},
    fixed={},
)
_ROPE = RopeDefaults(theta=1000000.0, form=RopeForm.NEOX)
# Of the one model that does not divide its scores by the root of a head's size.
_N_LAYERS_27B = 62


def read_config(file: GGUFFile) -> ModelConfig:
    """Layers with a window rotate by a base of their own, which nothing scales."""
    n_layer, n_embd = n_layers(file), read_n_embd(file)
    attention = replace(read_attention(file, _ROPE), qk_norm=QKNorm.WEIGHTED, post_norm=True)
    scale = file.get_float("gemma3.attention.scale", 0.0) or default_scale(
        n_layer, n_embd, attention.n_head, attention.key_dim
    )
    seeing_all = replace(attention, scale=scale)
    assert attention.rope is not None
    theta = file.get_float(f"gemma3.{LOCAL_THETA_KEY}", LOCAL_THETA)
    local_rope = Rope(attention.rope.dim, theta, RopeForm.NEOX)
    local = replace(seeing_all, rope=local_rope, window=read_window(file))
    has_window = read_window_pattern(file, n_layer, WINDOW_PERIOD)
    n_ff = read_n_ff(file, "feed_forward_length")
    feed_forward = DenseFeedForward(n_ff, activation=Activation.GELU, post_norm=True)
    config = read_decoder(
        file, lambda i: Layer(local if has_window[i] else seeing_all, feed_forward)
    )
    return replace(config, embedding_scale=math.sqrt(n_embd), soft_cap=read_soft_cap(file))


def default_scale(n_layer: int, n_embd: int, n_head: int, key_dim: int) -> float:
    """Returns what scores are multiplied by where a file does not say."""
    size = n_embd / n_head if n_layer == _N_LAYERS_27B else key_dim
    return float(size**-0.5)
