"""SIMD vectors as numba types: a value of ``f32x8`` is one LLVM ``<8 x float>``.

The lengths are fixed at 256 bits (and the halves that conversions need). LLVM splits them into
two registers where the machine's are narrower, so kernels are written once for every machine.
"""

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import models, register_model


class Vector(types.Type):
    """``lanes`` values of one scalar numba type."""

    def __init__(self, scalar: Any, lanes: int) -> None:
        self.scalar = scalar
        self.lanes = lanes
        super().__init__(name=f"Vector({scalar}, {lanes})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, data_model_manager, vector_type):
        super().__init__(data_model_manager, vector_type, llvm_vector(vector_type))


def llvm_vector(vector_type: Vector) -> ir.VectorType:
    """The LLVM type of a ``Vector``."""
    scalar: Any = vector_type.scalar
    is_float = isinstance(scalar, types.Float)
    element = ir.FloatType() if is_float else ir.IntType(scalar.bitwidth)
    return ir.VectorType(element, vector_type.lanes)


u8x32 = Vector(types.uint8, 32)
i8x32 = Vector(types.int8, 32)
i16x16 = Vector(types.int16, 16)
u16x8 = Vector(types.uint16, 8)
i32x8 = Vector(types.int32, 8)
f32x8 = Vector(types.float32, 8)
