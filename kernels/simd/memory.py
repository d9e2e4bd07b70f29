"""SIMD vectors from and to memory: arrays, or pointers where compiled code passes addresses.

Any alignment will do, and no bounds are checked: the kernels' callers do that. Indices are flat, so
that arrays must be C-contiguous.
"""

from typing import Any

from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.core.errors import RequireLiteralValue
from numba.extending import intrinsic

from q4run.kernels.compiling.compile import inline
from q4run.kernels.simd import emit, lowering
from q4run.kernels.simd.vector import Vector, f32x8, i8x32, i32x8, llvm_vector, u8x32, u16x8


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
    return isinstance(array, types.CPointer) or (
        isinstance(array, types.Array) and array.layout == "C"
    )


def _pointer(context: Any, builder: Any, signature: Any, args: Any, pointee: ir.Type) -> Any:
    """The address of ``array[index]``, the first two arguments, as a pointer to ``pointee``."""
    first = args[0]
    if isinstance(signature.args[0], types.Array):
        first = cgutils.create_struct_proxy(signature.args[0])(context, builder, first).data
    return builder.bitcast(builder.gep(first, [args[1]]), ir.PointerType(pointee))


load_u8x32 = _loader(u8x32, types.uint8, "32 bytes from ``array[index]`` on.")
load_i8x32 = _loader(i8x32, types.int8, "32 signed bytes from ``array[index]`` on.")
load_f32x8 = _loader(f32x8, types.float32, "8 floats from ``array[index]`` on.")
load_i32x8 = _loader(i32x8, types.int32, "8 integers from ``array[index]`` on.")
load_i32x8_bytes = _loader(i32x8, types.uint8, "8 32-bit integers from byte ``index`` on.")
load_u16x8 = _loader(u16x8, types.uint16, "8 16-bit patterns from ``array[index]`` on.")
load_u16x8_bytes = _loader(u16x8, types.uint8, "8 16-bit patterns from byte ``index`` on.")
load_f32x8_bytes = _loader(f32x8, types.uint8, "8 floats from byte ``index`` on.")


def _widening_loader(scalar: Any, doc: str) -> Any:
    @intrinsic
    def load(typing_context, array, index):
        if not _is_flat(array) or array.dtype != types.uint8:
            return None

        def codegen(context, builder, signature, args):
            narrow = ir.VectorType(ir.IntType(scalar.bitwidth), 8)
            pointer = _pointer(context, builder, signature, args, narrow)
            extend = builder.sext if scalar.signed else builder.zext
            return extend(builder.load(pointer, align=1), llvm_vector(i32x8))

        return i32x8(array, types.intp), codegen

    load.__doc__ = doc
    return load


load_wide_i8 = _widening_loader(types.int8, "8 signed bytes from byte ``index`` on, as i32x8.")
load_wide_u8 = _widening_loader(types.uint8, "8 bytes from byte ``index`` on, as i32x8.")
load_wide_u16 = _widening_loader(
    types.uint16, "8 16-bit integers from byte ``index`` on, as i32x8."
)


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
def load_four(typing_context, array, index):
    """The 4 signed bytes from ``array[index]`` on, eight times over, as i8x32."""
    if not _is_flat(array) or array.dtype != types.int8:
        return None

    def codegen(context, builder, signature, args):
        pointer = _pointer(context, builder, signature, args, ir.IntType(32))
        repeated = emit.splat(builder, builder.load(pointer, align=1), 8)
        return builder.bitcast(repeated, llvm_vector(i8x32))

    return i8x32(array, types.intp), codegen


def _prefetch(locality: int, doc: str) -> Any:
    @intrinsic
    def ask(typing_context, array, index):
        if not isinstance(array, types.Array | types.CPointer):
            return None

        def codegen(context, builder, signature, args):
            pointer = _pointer(context, builder, signature, args, ir.IntType(8))
            i32 = ir.IntType(32)
            operands = [pointer, i32(_READ), i32(locality), i32(_DATA)]
            emit.call(builder, "llvm.prefetch.p0", ir.VoidType(), operands)
            return context.get_dummy_value()

        return types.void(array, types.intp), codegen

    ask.__doc__ = doc
    return ask


_READ, _DATA = 0, 1
prefetch = _prefetch(
    1, "Asks for the cache line of ``array[index]``; harmless anywhere, past the end included."
)
prefetch_once = _prefetch(
    0, "``prefetch`` of what is read a single time: it is not to push other things out."
)


@intrinsic
def copy_bytes(typing_context, source, source_index, target, target_index, n_bytes):
    """Copies bytes between uint8 pointers that do not overlap."""

    def codegen(context, builder, signature, args):
        pointers = [builder.gep(args[2], [args[3]]), builder.gep(args[0], [args[1]])]
        operands = [*pointers, args[4], ir.IntType(1)(0)]
        emit.call(builder, "llvm.memcpy.p0.p0.i64", ir.VoidType(), operands)
        return context.get_dummy_value()

    return types.void(source, types.intp, target, types.intp, types.intp), codegen


@intrinsic(prefer_literal=True)
def interleave_sixteen(typing_context, source, index, stride, target, target_index, unit):
    """Eight rows of 16 bytes, ``stride`` apart, to 128 bytes: the first ``unit`` bytes (a constant,
    2 or 4) of each row, then the next of each row; uint8 pointers."""
    if not isinstance(unit, types.IntegerLiteral):
        raise RequireLiteralValue("interleave_sixteen takes a constant unit")
    n_units = 16 // unit.literal_value
    element = ir.IntType(8 * unit.literal_value)

    def codegen(context, builder, signature, args):
        source, index, stride, target, target_index, _ = args
        joined = []
        for row in range(8):
            at = builder.add(index, builder.mul(stride, stride.type(row)))
            units = emit.vector(element, n_units).as_pointer()
            pointer = builder.bitcast(builder.gep(source, [at]), units)
            joined.append(builder.load(pointer, align=1))
        while len(joined) > 2:
            joined = [emit.join(builder, *joined[i : i + 2]) for i in range(0, len(joined), 2)]
        for i in range(n_units):
            order = ir.Constant(emit.vector(emit.I32, 8), [n_units * row + i for row in range(8)])
            column = builder.shuffle_vector(*joined, order)
            place = builder.add(target_index, target_index.type(i * 8 * unit.literal_value))
            pointer = builder.bitcast(builder.gep(target, [place]), column.type.as_pointer())
            builder.store(column, pointer, align=1)
        return context.get_dummy_value()

    arguments = (source, types.intp, types.intp, target, types.intp, unit)
    return types.void(*arguments), codegen


@intrinsic(prefer_literal=True)
def stack_bytes(typing_context, n_bytes):
    """A pointer to ``n_bytes`` (a constant) of the calling function's stack, 64-byte aligned."""
    if not isinstance(n_bytes, types.IntegerLiteral):
        raise RequireLiteralValue("stack_bytes takes a constant")
    count = n_bytes.literal_value

    def codegen(context, builder, signature, args):
        with builder.goto_entry_block():
            memory = builder.alloca(ir.IntType(8), size=count)
        memory.align = 64
        return memory

    return types.CPointer(types.uint8)(n_bytes), codegen


def _pointer_maker(scalar: types.Type) -> Any:
    @intrinsic
    def pointer(typing_context, address):
        result = types.CPointer(scalar)

        def codegen(context, builder, signature, args):
            return builder.inttoptr(args[0], context.get_value_type(result))

        return result(types.int64), codegen

    pointer.__doc__ = f"A memory address as a pointer to {scalar}."
    return pointer


u8_pointer = _pointer_maker(types.uint8)
i8_pointer = _pointer_maker(types.int8)
i32_pointer = _pointer_maker(types.int32)
i64_pointer = _pointer_maker(types.int64)
f32_pointer = _pointer_maker(types.float32)


@inline
def f32_array(address, n):
    """The ``n`` floats at a memory address as an array."""
    return carray(f32_pointer(address), n)


@inline
def i64_array(address, n):
    """The ``n`` 64-bit integers at a memory address as an array."""
    return carray(i64_pointer(address), n)


@intrinsic
def address_of(typing_context, pointer):
    """The memory address that a pointer holds."""

    def codegen(context, builder, signature, args):
        return builder.ptrtoint(args[0], ir.IntType(64))

    return types.int64(pointer), codegen
