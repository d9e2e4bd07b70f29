"""What a quantised type is: its block layout, its codec and its place in the registry.

A format file registers one instance of a ``Format`` subclass and overloads ``dot_block`` (or
``load_values`` for float types) for its numba type. The converter quantises with it, the runtime
multiplies with it, and both find it by its GGUF type.
"""

from collections.abc import Iterable

import gguf
import numpy as np
from numba.core import types
from numba.extending import (
    NativeValue,
    models,
    overload,
    register_model,
    typeof_impl,
    unbox,
)

_BY_TYPE: dict[gguf.GGMLQuantizationType, "Format"] = {}


class FormatType(types.Type):
    """The numba type of one format: a kernel that takes a ``Format`` is compiled for each."""

    def __init__(self, name: str, block_size: int, type_size: int) -> None:
        self.format_name = name
        self.block_size = block_size
        self.type_size = type_size
        super().__init__(name=f"Format({name})")


register_model(FormatType)(models.OpaqueModel)


class Format:
    """A GGUF tensor type: rows of blocks, ``block_size`` values in ``type_size`` bytes each.

    ``int8_activations`` tells which kernels multiply with it: those that quantise the activations
    to int8 first, or those that keep them in float32.
    """

    def __init__(self, ggml_type: gguf.GGMLQuantizationType, *, int8_activations: bool) -> None:
        self.ggml_type = ggml_type
        self.name: str = ggml_type.name.lower()
        self.block_size, self.type_size = gguf.GGML_QUANT_SIZES[ggml_type]
        self.int8_activations = int8_activations
        self.numba_type = FormatType(self.name, self.block_size, self.type_size)

    def __repr__(self) -> str:
        return f"<Format {self.name}>"

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.type_size / self.block_size

    def fits(self, n_cols: int) -> bool:
        """Whether a row of ``n_cols`` values is a whole number of blocks."""
        return n_cols % self.block_size == 0

    def row_bytes(self, n_cols: int) -> int:
        """Bytes of a row of ``n_cols`` values; ValueError unless they are whole blocks."""
        if not self.fits(n_cols):
            raise ValueError(f"{n_cols} values are not whole {self.name} blocks")
        return n_cols // self.block_size * self.type_size

    def quantize(self, values: np.ndarray) -> np.ndarray:
        """float32 (..., n_cols) -> uint8 (..., row_bytes(n_cols)), the bytes of a GGUF tensor."""
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


def find_format(ggml_type: gguf.GGMLQuantizationType) -> Format | None:
    """The format with that GGUF type, or None where there are no kernels for it."""
    return _BY_TYPE.get(ggml_type)


def find_format_named(name: str) -> Format | None:
    """The format whose lower-case GGUF name is ``name`` (``q4_0``, ``tq2_0``, ...), or None."""
    return next((fmt for fmt in _BY_TYPE.values() if fmt.name == name), None)


def all_formats() -> Iterable[Format]:
    """Every registered format."""
    return _BY_TYPE.values()


@typeof_impl.register(Format)
def _typeof_format(value, context):
    return value.numba_type


@unbox(FormatType)
def _unbox_format(format_type, value, context):
    return NativeValue(context.context.get_dummy_value())


# The functions below have no Python body: in compiled code each format's overload stands in.


def dot_block(fmt, weights, offset, q, scales, sums, token, block, accumulator):
    """``accumulator`` (f32x8) plus one weight block times the same columns of one token.

    weights: uint8 array; the block begins at byte ``offset``. q, scales, sums: the activations of
    ``activations.py``; ``block`` counts weight blocks along the row.
    """
    raise NotImplementedError


def load_values(fmt, weights, offset):
    """8 weights from byte ``offset`` on as f32x8 (float types)."""
    raise NotImplementedError


def load_value(fmt, weights, offset):
    """The weight at byte ``offset`` as float32 (float types)."""
    raise NotImplementedError


def block_bytes(fmt):
    """``type_size`` as a compile-time constant."""
    raise NotImplementedError


@overload(block_bytes)
def _block_bytes(fmt):
    if isinstance(fmt, FormatType):
        type_size = fmt.type_size
        return lambda fmt: type_size
    return None
