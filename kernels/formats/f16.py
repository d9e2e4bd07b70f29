"""F16: IEEE half precision. Values beyond 65504 become infinite."""

import gguf
import numpy as np
from numba.extending import overload

from q4run.kernels.formats.base import Format, load_value, load_values, register
from q4run.kernels.simd.casts import halves_to_float
from q4run.kernels.simd.memory import load_half, load_u16x8_bytes


class F16(Format):
    def quantize_blocks(self, values: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            return values.astype(np.float16).view(np.uint8)

    def dequantize_blocks(self, raw: np.ndarray) -> np.ndarray:
        return raw.view(np.float16).astype(np.float32)


FORMAT = register(F16(gguf.GGMLQuantizationType.F16, int8_activations=False))


@overload(load_values)
def _load_values(fmt, weights, offset):
    if fmt is FORMAT.numba_type:
        return lambda fmt, weights, offset: halves_to_float(load_u16x8_bytes(weights, offset))
    return None


@overload(load_value)
def _load_value(fmt, weights, offset):
    if fmt is FORMAT.numba_type:
        return lambda fmt, weights, offset: load_half(weights, offset)
    return None
