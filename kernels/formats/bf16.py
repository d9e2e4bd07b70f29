"""BF16: the upper half of a float32, rounded to nearest even."""

import gguf
import ml_dtypes
import numpy as np
from numba.extending import overload

from q4run.kernels.formats.base import Format, load_value, load_values, register
from q4run.kernels.simd.casts import bfloats_to_float
from q4run.kernels.simd.memory import load_bfloat, load_u16x8_bytes


class BF16(Format):
    def quantize_blocks(self, values: np.ndarray) -> np.ndarray:
        return values.astype(ml_dtypes.bfloat16).view(np.uint8)

    def dequantize_blocks(self, raw: np.ndarray) -> np.ndarray:
        return raw.view(ml_dtypes.bfloat16).astype(np.float32)


FORMAT = register(BF16(gguf.GGMLQuantizationType.BF16, int8_activations=False))


@overload(load_values)
def _load_values(fmt, weights, offset):
    if fmt is FORMAT.numba_type:
        return lambda fmt, weights, offset: bfloats_to_float(load_u16x8_bytes(weights, offset))
    return None


@overload(load_value)
def _load_value(fmt, weights, offset):
    if fmt is FORMAT.numba_type:
        return lambda fmt, weights, offset: load_bfloat(weights, offset)
    return None
