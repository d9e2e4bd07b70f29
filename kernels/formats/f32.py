"""F32: the values themselves."""

import gguf
import numpy as np
from numba.extending import overload

from q4run.kernels.formats.base import Format, load_value, load_values, register
from q4run.kernels.simd.memory import load_f32x8_bytes, load_float


class F32(Format):
    def quantize_blocks(self, values: np.ndarray) -> np.ndarray:
        return values.view(np.uint8)

    def dequantize_blocks(self, raw: np.ndarray) -> np.ndarray:
        return raw.view(np.float32)


FORMAT = register(F32(gguf.GGMLQuantizationType.F32, int8_activations=False))


@overload(load_values)
def _load_values(fmt, weights, offset):
    if fmt is FORMAT.numba_type:
        return lambda fmt, weights, offset: load_f32x8_bytes(weights, offset)
    return None


@overload(load_value)
def _load_value(fmt, weights, offset):
    if fmt is FORMAT.numba_type:
        return lambda fmt, weights, offset: load_float(weights, offset)
    return None
