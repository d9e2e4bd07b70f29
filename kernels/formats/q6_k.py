"""Q6_K: 256 values in sixteens, each with an int8 scale; value = factor * scale * (code - 32).

128 bytes with the lower 4 bits of the codes, 64 with the upper 2, 16 scales, an f16 factor. Of
each half (128 values, 64 and 32 bytes) the lower bits of groups 0 and 1 are the lower halves of the
bytes and those of groups 2 and 3 the upper halves; bits 2g and 2g + 1 belong to group g.
"""

import gguf
import numpy as np

from q4run.kernels.compiling.compile import inline
from q4run.kernels.formats.base import Field, register
from q4run.kernels.formats.parts.scaled import scales_of
from q4run.kernels.formats.quantize.shared_scale import largest_integers, quantize_shared_scale
from q4run.kernels.formats.quantize.symmetric import scale_search
from q4run.kernels.formats.quantize.tiles import put_half
from q4run.kernels.formats.reading import codes, each_vector, implements, scale
from q4run.kernels.formats.writing import Coded, pack_codes, pack_scales
from q4run.kernels.simd.casts import halves_to_float, to_float
from q4run.kernels.simd.memory import load_u8x32, load_u16x8_bytes, load_wide_i8
from q4run.kernels.simd.ops import bit_field, bit_field_at, bit_or, mul

_SEARCH = scale_search((0.82, 1.03, 9), (0.9, 1.05, 3), 0.01)
_LARGEST = largest_integers(-128)


class Q6_K(Coded):
    def quantize_blocks(self, values: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
        return quantize_shared_scale(self, values, weights, _SEARCH, _LARGEST)

    def unpack_scales(self, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scales = scales_of(raw, 208) * raw[:, 192:208].view(np.int8).astype(np.float32)
        return scales, np.zeros_like(scales)

    def dequantize_blocks(self, raw: np.ndarray) -> np.ndarray:
        packed = raw[:, :128].reshape(-1, 2, 1, 64)
        lower = np.concatenate([packed & 15, packed >> 4], axis=2).reshape(-1, 2, 4, 32)
        shifts = np.arange(0, 8, 2, dtype=np.uint8).reshape(4, 1)
        upper = raw[:, 128:192].reshape(-1, 2, 1, 32) >> shifts & 3
        codes = (lower | upper << 4).reshape(-1, 16, 16).astype(np.float32) - 32
        scales, _ = self.unpack_scales(raw)
        return (scales[:, :, None] * codes).reshape(-1, 256)


FORMAT = register(
    Q6_K(
        gguf.GGMLQuantizationType.Q6_K,
        [Field(0, 32, 4), Field(128, 16, 4), Field(192, 16, 1), Field(208, 1, 2)],
        code_bits=6,
        zero=32,
        half_groups=True,
        levels=range(-32, 32),
    )
)
# Where the parts of eight interleaved rows begin.
_UPPER, _SCALES, _FACTORS = 8 * 128, 8 * 192, 8 * 208


@implements(pack_scales, FORMAT)
def _pack_scales(fmt, factors, scales, minima, raw, at):
    for i in range(16):
        raw[at + 192 + i] = np.uint8(scales[i] & 255)
    put_half(factors[0], raw, at + 208)


@implements(pack_codes, FORMAT)
def _pack_codes(fmt, codes, first, raw, at):
    for half in range(2):
        own, lower, upper = first + 128 * half, at + 64 * half, at + 128 + 32 * half
        for i in range(64):
            raw[lower + i] = codes[own + i] & 15 | codes[own + 64 + i] << 4
        for i in range(32):
            low = codes[own + i] >> 4 & 3 | (codes[own + 32 + i] >> 4 & 3) << 2
            high = (codes[own + 64 + i] >> 4 & 3) << 4 | (codes[own + 96 + i] >> 4 & 3) << 6
            raw[upper + i] = low | high


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
