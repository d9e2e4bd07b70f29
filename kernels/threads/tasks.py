"""What kernels share their work out with: ``run_tasks(pool, n_tasks, function, arguments)``."""

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from q4run.kernels.simd.emit import I8
from q4run.kernels.threads.pool import run_job

_I64 = ir.IntType(64)
_RUN_JOB: Any = types.Dispatcher(run_job)


@intrinsic
def run_tasks(typing_context, pool, n_tasks, function, arguments):
    """Calls ``function(task, *arguments)`` for each task below ``n_tasks``, on the pool's threads.

    pool: the state of a ``ThreadPool``, or ``ALONE``; function: a compiled function that returns
    nothing and raises nothing; arguments: a tuple. Tasks run in any order and must not write to
    the same places. An intrinsic, so that a call costs no compilation of its own.
    """
    task_args = _compiled(typing_context, function, (types.intp, *arguments.types))
    job_args = _compiled(typing_context, _RUN_JOB, (pool, types.intp, types.int64, types.int64))

    def codegen(context, builder, signature, args):
        memory = cgutils.alloca_once_value(builder, args[3])
        c_function = _c_function(context, builder, function, task_args, memory.type)
        addresses = [builder.ptrtoint(pointer, _I64) for pointer in (c_function, memory)]
        _call(context, builder, _RUN_JOB, job_args, [args[0], args[1], *addresses])
        return context.get_dummy_value()

    return types.void(pool, types.intp, function, arguments), codegen


def _compiled(typing_context: Any, function: Any, arguments: tuple[types.Type, ...]) -> Any:
    """The argument types of the overload that takes ``arguments``, compiled by now."""
    return function.get_call_type(typing_context, arguments, {}).args


def _c_function(
    context: Any, builder: ir.IRBuilder, function: Any, arguments: Any, memory: ir.Type
) -> ir.Function:
    """A C function (void* memory, task) that calls ``function`` with the tuple in that memory."""
    c_type = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), _I64])
    c_function = ir.Function(builder.module, c_type, builder.module.get_unique_name("task"))
    c_function.linkage = "internal"
    body = ir.IRBuilder(c_function.append_basic_block())
    unpacked = body.load(body.bitcast(c_function.args[0], memory))
    values = [c_function.args[1], *cgutils.unpack_tuple(body, unpacked)]
    _call(context, body, function, arguments, values)
    body.ret_void()
    return c_function


def _call(
    context: Any, builder: ir.IRBuilder, function: Any, arguments: Any, values: list[ir.Value]
) -> None:
    """Calls a compiled function that raises nothing."""
    overload = function.dispatcher.overloads[arguments]
    callee = context.declare_function(builder.module, overload.fndesc)
    context.add_linking_libs([overload.library])
    context.call_conv.call_function(builder, callee, types.none, arguments, values)
