"""MXFP4: 32 4-bit floats (sign, 2 bits of exponent, 1 of fraction) and a power of two.

As in the OCP Microscaling Formats specification 1.0. The codes stand for twice their value, which
is an integer, and the exponent byte e for 2 ** (e - 128).
"""

import gguf
import numpy as np

from q4run.kernels.compile import kernel
from q4run.kernels.formats.base import Field, Format, register
from q4run.kernels.formats.nibbles import nibbles_of_table, pack_nibbles, unpack_nibbles
from q4run.kernels.formats.reading import codes, implements, scale
from q4run.kernels.simd.casts import halved_power_of_two
from q4run.kernels.simd.memory import load_wide_u8

_ZERO = 12
VALUES = np.array(gguf.quants.MXFP4.kvalues, np.float32)
_doubled_values = nibbles_of_table([value + _ZERO for value in gguf.quants.MXFP4.kvalues])


class MXFP4(Format):
    def quantize_blocks(self, values: np.ndarray) -> np.ndarray:
        largest = np.abs(values).max(axis=1, keepdims=True)
        with np.errstate(divide="ignore"):
            # The largest code, 6, has the exponent 2.
            exponents = np.nan_to_num(np.floor(np.log2(largest))) - 2 + 127
        exponents = np.clip(exponents, 0, 254).astype(np.uint8)
        codes = np.empty(values.shape, np.uint8)
        _nearest(values, _powers(exponents), VALUES, codes)
        return np.concatenate([exponents, pack_nibbles(codes)], axis=1)

    def dequantize_blocks(self, raw: np.ndarray) -> np.ndarray:
        return _powers(raw[:, :1]) * VALUES[unpack_nibbles(raw[:, 1:])]


def _powers(exponents: np.ndarray) -> np.ndarray:
    """2 ** (e - 128), subnormal ones included."""
    return np.ldexp(np.float32(1), exponents.astype(np.int32) - 128)


@kernel()
def _nearest(values, powers, table, codes):
    """The first of the nearest entries of the table, as ggml's reference chooses."""
    for block in range(len(values)):
        for i in range(32):
            smallest = np.float32(np.inf)
            codes[block, i] = 0
            for code in range(16):
                error = abs(table[code] * powers[block, 0] - values[block, i])
                if error < smallest:
                    smallest = error
                    codes[block, i] = code


FORMAT = register(
    MXFP4(gguf.GGMLQuantizationType.MXFP4, [Field(0, 1, 1), Field(1, 4, 4)], zero=_ZERO)
)


@implements(codes, FORMAT)
def _codes(fmt, weights, at, group):
    return _doubled_values(weights, at + 8)


@implements(scale, FORMAT)
def _scale(fmt, weights, at, group, half):
    return halved_power_of_two(load_wide_u8(weights, at))
