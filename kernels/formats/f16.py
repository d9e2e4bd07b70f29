"""F16: IEEE half precision. Values beyond 65504 become infinite."""

import gguf
import numpy as np

from q4run.kernels.formats.base import Field, Format, register
from q4run.kernels.formats.reading import implements, values
from q4run.kernels.simd.casts import halves_to_float
from q4run.kernels.simd.memory import load_u16x8_bytes


class F16(Format):
    def quantize_blocks(self, values: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
        with np.errstate(over="ignore"):
            return values.astype(np.float16).view(np.uint8)

    def dequantize_blocks(self, raw: np.ndarray) -> np.ndarray:
        return raw.view(np.float16).astype(np.float32)


FORMAT = register(F16(gguf.GGMLQuantizationType.F16, [Field(0, 1, 2)], int8_activations=False))


@implements(values, FORMAT)
def _values(fmt, weights, at):
    return halves_to_float(load_u16x8_bytes(weights, at))
