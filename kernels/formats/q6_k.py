"""Q6_K: 256 values in sixteens, each with an int8 scale; value = factor * scale * (code - 32).

128 bytes with the lower 4 bits of the codes, 64 with the upper 2, 16 scales, an f16 factor. Of
each half (128 values, 64 and 32 bytes) the lower bits of groups 0 and 1 are the lower halves of the
bytes and those of groups 2 and 3 the upper halves; bits 2g and 2g + 1 belong to group g.
"""

import gguf
import numpy as np

from q4run.kernels.compile import inline
from q4run.kernels.formats.base import Field, Format, register
from q4run.kernels.formats.reading import codes, each_vector, implements, scale
from q4run.kernels.formats.scaled import scales_of
from q4run.kernels.simd.casts import halves_to_float, to_float
from q4run.kernels.simd.memory import load_u8x32, load_u16x8_bytes, load_wide_i8
from q4run.kernels.simd.ops import bit_field, bit_field_at, bit_or, mul


class Q6_K(Format):
    def dequantize_blocks(self, raw: np.ndarray) -> np.ndarray:
        packed = raw[:, :128].reshape(-1, 2, 1, 64)
        lower = np.concatenate([packed & 15, packed >> 4], axis=2).reshape(-1, 2, 4, 32)
        shifts = np.arange(0, 8, 2, dtype=np.uint8).reshape(4, 1)
        upper = raw[:, 128:192].reshape(-1, 2, 1, 32) >> shifts & 3
        codes = (lower | upper << 4).reshape(-1, 16, 16).astype(np.float32) - 32
        scales = scales_of(raw, 208) * raw[:, 192:208].view(np.int8).astype(np.float32)
        return (scales[:, :, None] * codes).reshape(-1, 256)


FORMAT = register(
    Q6_K(
        gguf.GGMLQuantizationType.Q6_K,
        [Field(0, 32, 4), Field(128, 16, 4), Field(192, 16, 1), Field(208, 1, 2)],
        zero=32,
        half_groups=True,
    )
)
# Where the parts of eight interleaved rows begin.
_UPPER, _SCALES, _FACTORS = 8 * 128, 8 * 192, 8 * 208


@inline
def _code(weights, at, group, vector):
    part, group = group >> 2, group & 3
    lower = load_u8x32(weights, at + 512 * part + 256 * (group & 1) + 32 * vector)
    upper = load_u8x32(weights, at + _UPPER + 256 * part + 32 * vector)
    return bit_or(bit_field(lower, 4 * (group >> 1), 15), bit_field_at(upper, 2 * group, 3, 4))


@implements(codes, FORMAT)
def _codes(fmt, weights, at, group):
    return each_vector(_code, weights, at, group)


@implements(scale, FORMAT)
def _scale(fmt, weights, at, group, half):
    own = load_wide_i8(weights, at + _SCALES + 16 * group + 8 * half)
    return mul(halves_to_float(load_u16x8_bytes(weights, at + _FACTORS)), to_float(own))
