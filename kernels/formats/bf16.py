"""BF16: the upper half of a float32, rounded to nearest even."""

import gguf
import ml_dtypes
import numpy as np

from q4run.kernels.formats.base import Field, Format, register
from q4run.kernels.formats.reading import implements, values
from q4run.kernels.simd.casts import bfloats_to_float
from q4run.kernels.simd.memory import load_u16x8_bytes


class BF16(Format):
    def quantize_blocks(self, values: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
        return values.astype(ml_dtypes.bfloat16).view(np.uint8)

    def dequantize_blocks(self, raw: np.ndarray) -> np.ndarray:
        return raw.view(ml_dtypes.bfloat16).astype(np.float32)


FORMAT = register(BF16(gguf.GGMLQuantizationType.BF16, [Field(0, 1, 2)], int8_activations=False))


@implements(values, FORMAT)
def _values(fmt, weights, at):
    return bfloats_to_float(load_u16x8_bytes(weights, at))
