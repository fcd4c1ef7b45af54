"""The floor under a network's time: its multiply-adds at the rate this CPU reaches when it does nothing else.

The rate is measured, not looked up: the CPU's best instruction for u8 x s8 (`tdpbusd` on AMX, else `vpdpbusd zmm`) over
registers only, on as many threads as the network gets. Two things are outside the floor's terms: Winograd convolutions
need fewer multiply-adds than are counted here, and float32 layers count as if they were INT8.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import numpy as np
import tvm
from tvm.tirx.script import builder as T

from tvm_int8.host import host_features
from tvm_int8.runtime.threads import effective_num_threads, run_on_threads
from tvm_int8.schedules import amx
from tvm_int8.schedules.vector import KernelBuilder, Registers, intrinsic, load, store
from tvm_int8.specs import LANES
from tvm_int8.target import parse_target

_VPDPBUSD = "llvm.x86.avx512.vpdpbusd.512"
_MACS = 64
"""Multiply-adds of one `vpdpbusd zmm`."""
_WORDS, _WEIGHTS = 3, 4
"""Operands held in registers; each pair has its accumulator. Five cycles of latency, two instructions per cycle, need
ten accumulators; twelve and seven operands fit into 32 registers."""
_ITERATIONS = 1 << 18
"""Of the loop: half a millisecond at two instructions per cycle."""
_TILE_MACS = amx.ROWS * amx.ROWS * amx.ROW_BYTES
_TILE_ITERATIONS = 1 << 15
"""Of the loop of four `tdpbusd`: half a millisecond, too."""
_BURSTS, _RUNS_PER_BURST = 40, 5
_REST_S = 0.004  # threads that share a CPU with another process may wake up on a better one


def unavailable() -> str | None:
    """Return why the peak cannot be measured on this CPU, or None when it can."""
    missing = sorted({"avx512f", "avx512_vnni"} - host_features())
    return f"this CPU has no {', '.join(missing)}" if missing else None


def instruction(target: str = "native") -> str:
    """Return the name of the instruction whose rate is the peak of code for a target."""
    return "tdpbusd" if parse_target(target).cpu.amx else "vpdpbusd"


def peak_gmacs_per_s(threads: int, target: str = "native") -> float:
    """Measure this CPU's peak of u8 x s8 multiply-adds, in about a third of a second.

    The fastest of many short runs counts. With more threads than CPUs that are free at the moment the result is too
    low, so of several measurements the highest is the best.

    Parameters
    ----------
    threads : int
        Threads to run on; as in a compiled module, never more than the CPUs this process may use.
    target : str
        Whose best instruction counts; one that this CPU can run.

    Returns
    -------
    float
        In 1e9 multiply-adds per second, all threads together.

    Raises
    ------
    RuntimeError
        The CPU has no AVX512-VNNI (`unavailable` says so beforehand).
    """
    if reason := unavailable():
        raise RuntimeError(f"peak: {reason}; expected AVX512-VNNI")
    threads = effective_num_threads(threads)
    main, arrays, macs = _tiles(threads) if instruction(target) == "tdpbusd" else _vectors(threads)
    arguments = [tvm.runtime.tensor(array) for array in arrays]
    seconds = run_on_threads(lambda: _fastest(lambda: main(*arguments)), threads)
    return threads * macs / seconds / 1e9


@functools.cache
def _vectors(threads: int) -> tuple[Callable[..., None], tuple[np.ndarray, ...], int]:
    """The loop of `vpdpbusd`, its arguments, and one thread's multiply-adds."""
    rng = np.random.default_rng(0)
    arrays = (
        rng.integers(0, 256, _WORDS * _MACS, np.uint8),
        rng.integers(-128, 128, _WEIGHTS * _MACS, np.int8),
        np.zeros(threads * _WORDS * _WEIGHTS * LANES, np.int32),
    )
    return _compiled(_vector_kernel(threads)), arrays, _ITERATIONS * _WORDS * _WEIGHTS * _MACS


@functools.cache
def _tiles(threads: int) -> tuple[Callable[..., None], tuple[np.ndarray, ...], int]:
    """The same of `tdpbusd`."""
    arrays = (np.ones(amx.TILE_BYTES, np.uint8), np.zeros(threads * amx.ROWS * amx.ROWS, np.int32))
    return _compiled(amx.with_permission(_tile_kernel(threads))), arrays, _TILE_ITERATIONS * 4 * _TILE_MACS


def _compiled(kernel) -> Callable[..., None]:
    module = tvm.IRModule({"main": kernel.with_attr("global_symbol", "main")})
    return tvm.compile(module, target=parse_target("native").tvm_target)["main"]


def _fastest(call: Callable[[], object]) -> float:
    """Return the seconds of the fastest of many calls, in bursts with a rest before each."""
    times = []
    for _ in range(_BURSTS):
        time.sleep(_REST_S)
        for _ in range(_RUNS_PER_BURST):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    return min(times)


def _vector_kernel(threads: int):
    """One task per thread: the accumulators start at what `sums` holds, so no two are the same to LLVM, and return."""
    count = _WORDS * _WEIGHTS
    with KernelBuilder("peak") as k:
        data, weight, sums = k.arguments(
            ("data", (_WORDS * _MACS,), "uint8"),
            ("weight", (_WEIGHTS * _MACS,), "int8"),
            ("sums", (threads * count * LANES,), "int32"),
        )
        with T.parallel(threads) as task:
            accumulators = Registers(count, "int32")
            for i in range(count):
                accumulators[i] = load(sums, (task * count + i) * LANES)
            words = [T.Bind(load(data, i * _MACS, _MACS)) for i in range(_WORDS)]
            weights = [T.Bind(load(weight, i * _MACS, _MACS)) for i in range(_WEIGHTS)]
            with T.serial(_ITERATIONS):
                for i in range(count):
                    operands = words[i % _WORDS], weights[i // _WORDS]
                    accumulators[i] = intrinsic("int32x16", _VPDPBUSD, accumulators[i], *operands)
            for i in range(count):
                store(sums, (task * count + i) * LANES, accumulators[i])
    return k.func


def _tile_kernel(threads: int):
    """One task per thread: two tiles of data times two of weights, into four."""
    with KernelBuilder("peak") as k:
        data, sums = k.arguments(
            ("data", (amx.TILE_BYTES,), "uint8"), ("sums", (threads * amx.ROWS * amx.ROWS,), "int32")
        )
        with T.parallel(threads) as task, amx.tiles():
            for tile in range(8):
                amx.load_tile(tile, data, 0, amx.ROW_BYTES)
            with T.serial(_TILE_ITERATIONS):
                for i in range(4):
                    amx.dot(i, 4 + i % 2, 6 + i // 2)
            amx.store_tile(0, sums, task * (amx.ROWS * amx.ROWS))
    return k.func
