"""F32: the values themselves."""

import gguf
import numpy as np

from q4run.kernels.formats.base import Field, Format, register
from q4run.kernels.formats.reading import implements, values
from q4run.kernels.simd.memory import load_f32x8_bytes


class F32(Format):
    def quantize_blocks(self, values: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
        return values.view(np.uint8)

    def dequantize_blocks(self, raw: np.ndarray) -> np.ndarray:
        return raw.view(np.float32)


FORMAT = register(F32(gguf.GGMLQuantizationType.F32, [Field(0, 1, 4)], int8_activations=False))


@implements(values, FORMAT)
def _values(fmt, weights, at):
    return load_f32x8_bytes(weights, at)
