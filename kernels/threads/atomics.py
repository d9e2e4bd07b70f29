"""Atomic operations on the words of an int64 array, sequentially consistent, and raw calls."""

import platform
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from q4run.kernels.simd import emit

_I64 = ir.IntType(64)
_ORDER = "seq_cst"
_SPIN_HINTS = {
    "x86_64": ("llvm.x86.sse2.pause", []),
    "amd64": ("llvm.x86.sse2.pause", []),
    "arm64": ("llvm.aarch64.hint", [emit.I32(1)]),
    "aarch64": ("llvm.aarch64.hint", [emit.I32(1)]),
}


def _word(context, builder, signature, args):
    array = cgutils.create_struct_proxy(signature.args[0])(context, builder, args[0])
    return builder.gep(array.data, [args[1]])


@intrinsic
def load(typing_context, words, index):
    """``words[index]``, as the other threads see it."""

    def codegen(context, builder, signature, args):
        return builder.load_atomic(_word(context, builder, signature, args), _ORDER, 8)

    return types.int64(words, types.intp), codegen


@intrinsic
def store(typing_context, words, index, value):
    """``words[index] = value`` for all threads to see, and everything written before it."""

    def codegen(context, builder, signature, args):
        builder.store_atomic(args[2], _word(context, builder, signature, args), _ORDER, 8)
        return context.get_dummy_value()

    return types.void(words, types.intp, types.int64), codegen


def _read_modify_write(operation: str, doc: str) -> Any:
    @intrinsic
    def atomic(typing_context, words, index, value):
        def codegen(context, builder, signature, args):
            word = _word(context, builder, signature, args)
            return builder.atomic_rmw(operation, word, args[2], _ORDER)

        return types.int64(words, types.intp, types.int64), codegen

    atomic.__doc__ = doc
    return atomic


add = _read_modify_write("add", "Adds to ``words[index]``; returns what was there before.")
exchange = _read_modify_write("xchg", "Sets ``words[index]``; returns what was there before.")


@intrinsic
def compare_exchange(typing_context, words, index, expected, value):
    """Sets ``words[index]`` if it is ``expected``; tells whether it was."""

    def codegen(context, builder, signature, args):
        word = _word(context, builder, signature, args)
        return builder.extract_value(builder.cmpxchg(word, args[2], args[3], _ORDER, _ORDER), 1)

    return types.boolean(words, types.intp, types.int64, types.int64), codegen


@intrinsic
def spin_hint(typing_context):
    """Tells the processor that this thread is only waiting for another."""

    def codegen(context, builder, signature, args):
        hint = _SPIN_HINTS.get(platform.machine().lower())
        if hint:
            emit.call(builder, hint[0], ir.VoidType(), hint[1])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def call(typing_context, address, arguments):
    """Calls the C function at ``address``, which returns nothing, with a tuple of scalars."""

    def codegen(context, builder, signature, args):
        values = cgutils.unpack_tuple(builder, args[1])
        function_type = ir.FunctionType(ir.VoidType(), [value.type for value in values])
        builder.call(builder.inttoptr(args[0], function_type.as_pointer()), values)
        return context.get_dummy_value()

    return types.void(types.int64, arguments), codegen


@intrinsic
def call_int(typing_context, address, arguments):
    """Calls the C function at ``address``, which returns a 64-bit number."""

    def codegen(context, builder, signature, args):
        values = cgutils.unpack_tuple(builder, args[1])
        function_type = ir.FunctionType(_I64, [value.type for value in values])
        return builder.call(builder.inttoptr(args[0], function_type.as_pointer()), values)

    return types.int64(types.int64, arguments), codegen
