"""What a quantised type is: its block layout, its codec and its place in the registry.

A format file registers one instance of a ``Format`` subclass and overloads the functions of
``reading.py`` for its numba type. The converter quantises with it, the runtime multiplies with it,
and both find it by its GGUF type.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import gguf
import numpy as np
from numba.core import types
from numba.core.imputils import lower_constant
from numba.extending import NativeValue, models, register_model, typeof_impl, unbox

from q4run.kernels.formats.quantize.column_weights import column_weights
from q4run.kernels.simd.lowering import BIAS
from q4run.kernels.simd.pairs import pairs_at_once

_BY_TYPE: dict[gguf.GGMLQuantizationType, "Format"] = {}
_WITHOUT_KERNELS: dict[gguf.GGMLQuantizationType, "Format"] = {}


class FormatType(types.Type):
    """The numba type of one format: a kernel that takes a ``Format`` is compiled for each."""

    def __init__(self, fmt: "Format") -> None:
        self.format = fmt
        super().__init__(name=f"Format({fmt.name})")


register_model(FormatType)(models.OpaqueModel)


class Field(NamedTuple):
    """A part of a block: ``n_units`` units of ``unit`` bytes (1, 2 or 4) from ``offset`` on.

    In RAM eight rows are interleaved unit by unit: the first unit of each row, then the second.
    """

    offset: int
    n_units: int
    unit: int


class Scales(NamedTuple):
    """What ``Format.find_scales`` found for n blocks: a value is ``scale * level + minimum``.

    scale, minimum: float32 (n, block_size // group_size), exactly as stored; minima are zeros where
    the format has none. fields: uint8 (n, type_size), blocks that hold them, for ``Format.pack``.
    """

    scale: np.ndarray
    minimum: np.ndarray
    fields: np.ndarray


class Format:
    """A GGUF tensor type: rows of blocks, ``block_size`` values in ``type_size`` bytes each.

    fields: what a block consists of, in the file's order. A value is
    ``scale * (code - zero)``, plus a minimum if ``has_minimum``; a scale is shared by 32 values,
    or by 16 with ``half_groups``. A code has ``code_bits`` at most, whatever bytes a file holds.
    ``signed`` codes are signed bytes in the form of ``simd.ops.biased``, with ``zero`` their bias.
    ``block_at_once`` formats overload
    ``reading.block_sums`` as well (and have one scale a block). Without ``int8_activations`` the
    weights are floats, read one column at a time, and nothing of this paragraph applies.

    levels: what codes stand for before the scale, ascending, as a quantiser sees them; empty for
    floats. group_size: how many values share a scale.
    """

    def __init__(
        self,
        ggml_type: gguf.GGMLQuantizationType,
        fields: Sequence[Field],
        *,
        int8_activations: bool = True,
        zero: int = 0,
        code_bits: int = 8,
        signed: bool = False,
        has_minimum: bool = False,
        half_groups: bool = False,
        block_at_once: bool = False,
        levels: Iterable[float] = (),
        group_size: int | None = None,
    ) -> None:
        self.ggml_type = ggml_type
        self.name: str = ggml_type.name.lower()
        self.block_size, self.type_size = gguf.GGML_QUANT_SIZES[ggml_type]
        self.fields = tuple(fields)
        self.int8_activations = int8_activations
        self.zero = BIAS if signed else zero
        self.pairs_at_once = 0 if signed else pairs_at_once(2**code_bits - 1)
        self.signed = signed
        self.has_minimum = has_minimum
        self.half_groups = half_groups
        self.block_at_once = block_at_once
        self.levels = np.array(tuple(levels), np.float32)
        self.group_size = group_size or (16 if half_groups else 32)
        self.numba_type = FormatType(self)

    def __repr__(self) -> str:
        return f"<Format {self.name}>"

    def __reduce__(self) -> tuple[Any, ...]:
        # Numba tells cached kernels apart by the pickled values they were made with.
        return find_format_named, (self.name,)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.type_size / self.block_size

    @property
    def can_quantize(self) -> bool:
        """Whether ``quantize`` works: some types can only be read so far."""
        return type(self).quantize_blocks is not Format.quantize_blocks

    @property
    def lowest(self) -> float:
        """The first level."""
        return float(self.levels[0])

    @property
    def highest(self) -> float:
        """The last level."""
        return float(self.levels[-1])

    @property
    def has_whole_levels(self) -> bool:
        """Whether the levels are all integers from the lowest to the highest."""
        return len(self.levels) > 0 and bool((np.diff(self.levels) == 1).all())

    @property
    def in_ram(self) -> "Format":
        """The format that matrices of this type have in RAM: their own where it has kernels."""
        return self

    def fits(self, n_cols: int) -> bool:
        """Whether a row of ``n_cols`` values is a whole number of blocks."""
        return n_cols % self.block_size == 0

    def row_bytes(self, n_cols: int) -> int:
        """Bytes of a row of ``n_cols`` values; ValueError unless they are whole blocks."""
        if not self.fits(n_cols):
            raise ValueError(f"{n_cols} values are not whole {self.name} blocks")
        return n_cols // self.block_size * self.type_size

    def quantize(self, values: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
        """float32 (..., n_cols) -> uint8 (..., row_bytes(n_cols)), the bytes of a GGUF tensor.

        importance: float32 (n_cols,), at least 0: the mean square of the input that each column
        multiplies. Scales and codes are searched for the least ``sum(importance * (value -
        stored) ** 2)`` of each block; None: all columns count alike. A row's bytes depend on
        nothing but the row and the importance. NotImplementedError unless ``can_quantize``.
        """
        values = np.ascontiguousarray(values, dtype=np.float32)
        n_cols = values.shape[-1]
        row_bytes = self.row_bytes(n_cols)
        weights = column_weights(importance, n_cols, self.block_size)
        blocks = self.quantize_blocks(values.reshape(-1, self.block_size), weights)
        return blocks.reshape(*values.shape[:-1], row_bytes)

    def find_scales(self, values: np.ndarray, importance: np.ndarray | None = None) -> Scales:
        """The scales that ``quantize`` stores for these values, (..., n_cols) as there."""
        raw = self.quantize(values, importance).reshape(-1, self.type_size)
        return Scales(*self.unpack_scales(raw), raw)

    def pack(self, scales: Scales, codes: np.ndarray) -> np.ndarray:
        """Blocks with those scales, and codes chosen by the caller.

        codes: uint8 (n_blocks, block_size), indices into ``levels``. uint8 (n_blocks, type_size).
        """
        raw = scales.fields.copy()
        if codes.shape != (len(raw), self.block_size) or codes.dtype != np.uint8:
            raise ValueError(f"codes of the shape {codes.shape} for {len(raw)} {self.name} blocks")
        if codes.size and codes.max() >= len(self.levels):
            raise ValueError(f"{self.name} has {len(self.levels)} levels only")
        self.pack_codes(np.ascontiguousarray(codes), raw)
        return raw

    def dequantize(self, raw: np.ndarray) -> np.ndarray:
        """uint8 (..., row_bytes) -> float32 (..., n_cols): exactly what the kernels multiply by."""
        raw = np.ascontiguousarray(raw)
        n_cols = raw.shape[-1] // self.type_size * self.block_size
        values = self.dequantize_blocks(raw.reshape(-1, self.type_size))
        return values.reshape(*raw.shape[:-1], n_cols)

    def quantize_blocks(self, values: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
        """float32 (n_blocks, block_size) -> uint8 (n_blocks, type_size).

        weights: of each value's squared error, float32 (period,): a whole number of blocks and of
        256, repeated over the blocks; above 0, relative to the largest of each block. None: equal.
        """
        raise NotImplementedError

    def unpack_scales(self, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """uint8 (n_blocks, type_size) -> scales and minima, float32 (n_blocks, n_groups) each.

        A value is ``scale * level + minimum``; minima are zeros where the format has none.
        """
        raise NotImplementedError

    def pack_codes(self, codes: np.ndarray, raw: np.ndarray) -> None:
        """Writes codes, uint8 (n_blocks, block_size) of indices into ``levels``, into blocks."""
        raise NotImplementedError

    def dequantize_blocks(self, raw: np.ndarray) -> np.ndarray:
        """uint8 (n_blocks, type_size) -> float32 (n_blocks, block_size)."""
        raise NotImplementedError


def register(fmt: Format) -> Format:
    """Makes ``fmt`` known under its GGUF type; a format file calls it once."""
    _BY_TYPE[fmt.ggml_type] = fmt
    return fmt


def register_without_kernels(fmt: Format) -> None:
    """Makes known a type that can be read, but is held in RAM as another (``fmt.in_ram``)."""
    _WITHOUT_KERNELS[fmt.ggml_type] = fmt


def find_format(ggml_type: gguf.GGMLQuantizationType) -> Format | None:
    """The format with that GGUF type, or None where it cannot even be read."""
    return _BY_TYPE.get(ggml_type) or _WITHOUT_KERNELS.get(ggml_type)


def find_format_named(name: str) -> Format | None:
    """The format whose lower-case GGUF name is ``name`` (``q4_0``, ``tq2_0``, ...), or None."""
    return next((fmt for fmt in _BY_TYPE.values() if fmt.name == name), None)


def all_formats() -> Iterable[Format]:
    """Every format that has kernels."""
    return _BY_TYPE.values()


@typeof_impl.register(Format)
def _typeof_format(value, context):
    return value.numba_type


@unbox(FormatType)
def _unbox_format(format_type, value, context):
    return NativeValue(context.context.get_dummy_value())


@lower_constant(FormatType)
def _format_constant(context, builder, format_type, value):
    return context.get_dummy_value()
