"""BitNet b1.58: norms within attention and feed-forwards, ternary weights (arXiv:2402.17764)."""

from dataclasses import replace

from q4run.errors import UnsupportedError
from q4run.gguf_file import GGUFFile
from q4run.models.config import ModelConfig, read_attention, read_decoder, read_n_ff
from q4run.models.keys import DECODER_KEYS, FamilyKeys
from q4run.models.parts import Activation, DenseFeedForward, Layer
from q4run.models.rope_keys import NEOX

ARCHITECTURE = "bitnet"
# A key of our own: llama.cpp takes SiLU for granted.
ACTIVATION_KEY = "hidden_act"
ACTIVATIONS = {"silu": Activation.SILU, "relu2": Activation.RELU_SQUARED}
KEYS = FamilyKeys(applied=DECODER_KEYS | {"feed_forward_length", ACTIVATION_KEY}, fixed={})


def read_config(file: GGUFFile) -> ModelConfig:
    """Every layer alike; UnsupportedError for an activation that is not known."""
    name = file.get_str(f"bitnet.{ACTIVATION_KEY}", "silu")
    if name not in ACTIVATIONS:
        raise UnsupportedError(
            f"{file.path}: bitnet.{ACTIVATION_KEY} is '{name[:40]}', which q4run does not know"
            f" (known: {', '.join(ACTIVATIONS)})"
        )
    attention = replace(read_attention(file, NEOX), sub_norm=True)
    feed_forward = DenseFeedForward(
        read_n_ff(file, "feed_forward_length"), activation=ACTIVATIONS[name], sub_norm=True
    )
    return read_decoder(file, lambda _: Layer(attention, feed_forward))
