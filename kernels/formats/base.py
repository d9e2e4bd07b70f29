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

from q4run.kernels.simd.lowering import BIAS

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


class Format:
    """A GGUF tensor type: rows of blocks, ``block_size`` values in ``type_size`` bytes each.

    fields: what a block consists of, in the file's order. A value is
    ``scale * (code - zero)``, plus a minimum if ``has_minimum``; a scale is shared by 32 values,
    or by 16 with ``half_groups``. ``signed`` codes are signed bytes in the form of
    ``simd.ops.biased``, with ``zero`` their bias. ``block_at_once`` formats overload
    ``reading.block_sums`` as well (and have one scale a block). Without ``int8_activations`` the
    weights are floats, read one column at a time, and nothing of this paragraph applies.
    """

    def __init__(
        self,
        ggml_type: gguf.GGMLQuantizationType,
        fields: Sequence[Field],
        *,
        int8_activations: bool = True,
        zero: int = 0,
        signed: bool = False,
        has_minimum: bool = False,
        half_groups: bool = False,
        block_at_once: bool = False,
    ) -> None:
        self.ggml_type = ggml_type
        self.name: str = ggml_type.name.lower()
        self.block_size, self.type_size = gguf.GGML_QUANT_SIZES[ggml_type]
        self.fields = tuple(fields)
        self.int8_activations = int8_activations
        self.zero = BIAS if signed else zero
        self.signed = signed
        self.has_minimum = has_minimum
        self.half_groups = half_groups
        self.block_at_once = block_at_once
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

    def quantize(self, values: np.ndarray) -> np.ndarray:
        """float32 (..., n_cols) -> uint8 (..., row_bytes(n_cols)), the bytes of a GGUF tensor.

        NotImplementedError unless ``can_quantize``.
        """
        values = np.ascontiguousarray(values, dtype=np.float32)
        row_bytes = self.row_bytes(values.shape[-1])
        blocks = self.quantize_blocks(values.reshape(-1, self.block_size))
        return blocks.reshape(*values.shape[:-1], row_bytes)

    def dequantize(self, raw: np.ndarray) -> np.ndarray:
        """uint8 (..., row_bytes) -> float32 (..., n_cols): exactly what the kernels multiply by."""
        raw = np.ascontiguousarray(raw)
        n_cols = raw.shape[-1] // self.type_size * self.block_size
        values = self.dequantize_blocks(raw.reshape(-1, self.type_size))
        return values.reshape(*raw.shape[:-1], n_cols)

    def quantize_blocks(self, values: np.ndarray) -> np.ndarray:
        """float32 (n_blocks, block_size) -> uint8 (n_blocks, type_size)."""
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
