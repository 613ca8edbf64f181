"""Threads that wait for each other inside compiled code.

Five waits a layer, 150 a token, of a microsecond each: too often for a thread pool, and
independent of whether numba finds OpenMP or TBB on the machine. Each wait spins, then
hands its processor on, and ends at once when another thread has failed.
"""

import ctypes
import sys

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

from tiny_models.kernels.compiling import inner

ARRIVED, STOPPED = 0, 1  # places in a barrier


def new_barrier() -> np.ndarray:
    """(16,) int64: how many waits were reached, whether to stop; a cache line alone."""
    return np.zeros(16, np.int64)


def _system_yield() -> int:
    """The address of the system's call that lets another thread run."""
    if sys.platform == "win32":
        function = ctypes.windll.kernel32.SwitchToThread
    else:
        function = ctypes.CDLL(None).sched_yield
    return ctypes.cast(function, ctypes.c_void_p).value


# Compiled code that is read back from a file finds it by this name.
binding.add_symbol("token_by_token_yield", _system_yield())
let_others_run = types.ExternalFunction("token_by_token_yield", types.int32())


@intrinsic
def _arrive(typing, barrier):
    """barrier[ARRIVED] += 1, atomically."""

    def build(context, builder, signature, args):
        at = context.make_array(barrier)(context, builder, args[0]).data
        builder.atomic_rmw("add", at, ir.Constant(ir.IntType(64), 1), "acq_rel")
        return context.get_dummy_value()

    return types.void(barrier), build


@intrinsic
def _read(typing, barrier, place):
    """barrier[place], read atomically."""

    def build(context, builder, signature, args):
        start = context.make_array(barrier)(context, builder, args[0]).data
        return builder.load_atomic(builder.gep(start, [args[1]]), "acquire", align=8)

    return types.int64(barrier, types.intp), build


@inner
def wait(barrier, turn, threads):
    """Return when all threads have come to this wait, their `turn`-th; or when one of
    them has failed. Returns the next turn."""
    if threads == 1:
        return turn
    _arrive(barrier)
    spins = 0
    while _read(barrier, ARRIVED) < turn * threads:
        spins += 1
        if spins > 5000:  # others may need our processor
            if _read(barrier, STOPPED) != 0:
                break
            let_others_run()
    return turn + 1
