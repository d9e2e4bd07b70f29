"""What becomes of gate and up, in float64, by the code that kernels know it under."""

import numpy as np

from q4run.kernels.elementwise import CLAMPED_SWIGLU, GELU, RELU_SQUARED, SILU


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def clamped_swiglu(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    gate, up = np.minimum(gate, 7), np.clip(up, -7, 7)
    return gate * sigmoid(1.702 * gate) * (up + 1)


def gelu(x: np.ndarray) -> np.ndarray:
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS = {
    SILU: lambda gate, up: gate * sigmoid(gate) * up,
    GELU: lambda gate, up: gelu(gate) * up,
    RELU_SQUARED: lambda gate, up: np.maximum(gate, 0) ** 2 * up,
    CLAMPED_SWIGLU: clamped_swiglu,
}
