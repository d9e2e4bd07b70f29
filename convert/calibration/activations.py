"""What becomes of gate and up, in numpy."""

from collections.abc import Callable

import numpy as np

from q4run.convert.calibration.routing import sigmoid
from q4run.models.parts import Activation


def _silu(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    gated: np.ndarray = gate * sigmoid(gate) * up
    return gated


def _gelu(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    inner = np.float32(np.sqrt(2 / np.pi)) * (gate + np.float32(0.044715) * gate**3)
    gated: np.ndarray = np.float32(0.5) * gate * (1 + np.tanh(inner)) * up
    return gated


def _relu_squared(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    gated: np.ndarray = np.square(np.maximum(gate, 0)) * up
    return gated


def _clamped_swiglu(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    gate, up = np.minimum(gate, 7), np.clip(up, -7, 7)
    gated: np.ndarray = gate * sigmoid(np.float32(1.702) * gate) * (up + 1)
    return gated


# Each takes gate and up, float32 (n_tokens, n_ff), and leaves them as they are.
ACTIVATIONS: dict[Activation, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    Activation.SILU: _silu,
    Activation.GELU: _gelu,
    Activation.RELU_SQUARED: _relu_squared,
    Activation.CLAMPED_SWIGLU: _clamped_swiglu,
}
