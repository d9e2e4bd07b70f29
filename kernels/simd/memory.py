"""SIMD vectors from and to arrays.

Any alignment will do, and no bounds are checked: the kernels' callers do that. Indices are flat, so
that arrays must be C-contiguous.
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from q4run.kernels.simd import emit, lowering
from q4run.kernels.simd.vector import Vector, f32x8, i8x32, i32x8, llvm_vector, u8x16, u8x32, u16x8


def _loader(result: Vector, array_dtype: types.Type, doc: str) -> Any:
    @intrinsic
    def load(typing_context, array, index):
        if not _is_flat(array) or array.dtype != array_dtype:
            return None

        def codegen(context, builder, signature, args):
            pointer = _pointer(context, builder, signature, args, llvm_vector(result))
            return builder.load(pointer, align=1)

        return result(array, types.intp), codegen

    load.__doc__ = doc
    return load


def _is_flat(array: Any) -> bool:
    """Whether flat indices are right for it: strides are not looked at."""
    return isinstance(array, types.Array) and array.layout == "C"


def _pointer(context: Any, builder: Any, signature: Any, args: Any, pointee: ir.Type) -> Any:
    """The address of ``array[index]``, the first two arguments, as a pointer to ``pointee``."""
    array = cgutils.create_struct_proxy(signature.args[0])(context, builder, args[0])
    return builder.bitcast(builder.gep(array.data, [args[1]]), ir.PointerType(pointee))


load_u8x32 = _loader(u8x32, types.uint8, "32 bytes from ``array[index]`` on.")
load_u8x16 = _loader(u8x16, types.uint8, "16 bytes from ``array[index]`` on.")
load_i8x32 = _loader(i8x32, types.int8, "32 signed bytes from ``array[index]`` on.")
load_f32x8 = _loader(f32x8, types.float32, "8 floats from ``array[index]`` on.")
load_u16x8 = _loader(u16x8, types.uint16, "8 16-bit patterns from ``array[index]`` on.")
load_u16x8_bytes = _loader(u16x8, types.uint8, "8 16-bit patterns from byte ``index`` on.")
load_f32x8_bytes = _loader(f32x8, types.uint8, "8 floats from byte ``index`` on.")


@intrinsic
def store(typing_context, array, index, vector):
    """Writes a vector to ``array[index]`` and the following elements."""
    if not _is_flat(array) or not isinstance(vector, Vector):
        return None

    def codegen(context, builder, signature, args):
        pointer = _pointer(context, builder, signature, args, args[2].type)
        builder.store(args[2], pointer, align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), codegen


@intrinsic
def load_half(typing_context, array, index):
    """The f16 at byte ``index`` of a uint8 array, as float32."""
    if not _is_flat(array) or array.dtype != types.uint8:
        return None

    def codegen(context, builder, signature, args):
        pointer = _pointer(context, builder, signature, args, ir.IntType(16))
        return lowering.half_to_float(builder, builder.load(pointer, align=1))

    return types.float32(array, types.intp), codegen


@intrinsic
def load_float(typing_context, array, index):
    """The f32 at byte ``index`` of a uint8 array."""
    if not _is_flat(array) or array.dtype != types.uint8:
        return None

    def codegen(context, builder, signature, args):
        pointer = _pointer(context, builder, signature, args, ir.FloatType())
        return builder.load(pointer, align=1)

    return types.float32(array, types.intp), codegen


@intrinsic
def store_low_bytes(typing_context, array, index, vector):
    """Writes the low byte of each lane of i32x8 to an int8 array."""
    if not _is_flat(array) or array.dtype != types.int8:
        return None

    def codegen(context, builder, signature, args):
        narrow = builder.trunc(args[2], ir.VectorType(ir.IntType(8), 8))
        pointer = _pointer(context, builder, signature, args, narrow.type)
        builder.store(narrow, pointer, align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, i32x8), codegen


@intrinsic
def load_repeated(typing_context, array, index):
    """The 4 bytes from ``array[index]`` on, four times over, as u8x16."""
    if not _is_flat(array) or array.dtype != types.uint8:
        return None

    def codegen(context, builder, signature, args):
        pointer = _pointer(context, builder, signature, args, ir.IntType(32))
        repeated = emit.splat(builder, builder.load(pointer, align=1), 4)
        return builder.bitcast(repeated, llvm_vector(u8x16))

    return u8x16(array, types.intp), codegen


@intrinsic
def load_bfloat(typing_context, array, index):
    """The bf16 at byte ``index`` of a uint8 array, as float32."""
    if not _is_flat(array) or array.dtype != types.uint8:
        return None

    def codegen(context, builder, signature, args):
        pointer = _pointer(context, builder, signature, args, ir.IntType(16))
        wide = builder.zext(builder.load(pointer, align=1), ir.IntType(32))
        return builder.bitcast(builder.shl(wide, ir.IntType(32)(16)), ir.FloatType())

    return types.float32(array, types.intp), codegen


@intrinsic
def prefetch(typing_context, array, index):
    """Asks for the cache line of ``array[index]``; harmless anywhere, past the end included."""
    if not isinstance(array, types.Array):
        return None

    def codegen(context, builder, signature, args):
        pointer = _pointer(context, builder, signature, args, ir.IntType(8))
        i32 = ir.IntType(32)
        # A read (0), of no lasting use to the outer caches (1), of data (1).
        operands = [pointer, i32(0), i32(1), i32(1)]
        emit.call(builder, "llvm.prefetch.p0", ir.VoidType(), operands)
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen
