"""The sixteen-lane vector vocabulary in which every kernel of this package is written, over TensorIR's builder.

A kernel is an explicit TensorIR loop nest: Python loops unroll, `T.serial` and `T.parallel` loops stay.  Sixteen lanes
are one zmm register; LLVM splits them in halves on CPUs with 256-bit registers.  Float steps mirror
`tvm_int8.quantization.arithmetic` one to one, fused multiply-adds included, so results agree to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from tvm_int8.specs import LANES, Output


class KernelBuilder:
    """Collects the arguments of one PrimFunc and its body.

    >>> with KernelBuilder("copy") as k:
    ...     source, target = k.arguments(("source", (4, 16), "float32"), ("target", (4, 16), "float32"))
    ...     with T.parallel(4) as i:
    ...         store(target, i * 16, load(source, i * 16))
    >>> k.func.attrs["tvm_int8.kernel"]
    'copy'
    """

    def __init__(self, name: str):
        self.name = name
        self.func: Any = None

    def __enter__(self) -> KernelBuilder:
        self._builder = IRBuilder()
        self._builder.__enter__()
        self._frame = T.prim_func(s_tir=True)
        self._frame.__enter__()
        T.func_name(self.name)
        T.func_attr({"tirx.noalias": True, "tvm_int8.kernel": self.name})
        return self

    def __exit__(self, kind, error, trace):
        self._frame.__exit__(kind, error, trace)
        if kind is None:
            self.func = self._builder.get()
        self._builder.__exit__(kind, error, trace)

    def arguments(self, *parameters: tuple) -> list:
        """Declare all parameters, each (name, shape, dtype); returns their flat 1-D views, in order."""
        buffers = [
            T.match_buffer(T.arg(name, T.handle()), tuple(map(int, shape)), dtype) for name, shape, dtype in parameters
        ]
        return [
            T.decl_buffer((math.prod(map(int, shape)),), dtype, data=buffer.data)
            for buffer, (_, shape, dtype) in zip(buffers, parameters, strict=True)
        ]


@contextmanager
def when(condition) -> Iterator[None]:
    """A branch without an else; a Python bool decides while compiling (a False body is still emitted, unreachable)."""
    with T.If(condition), T.Then():
        yield


def branch(condition, needed, then: Callable[[], None], otherwise: Callable[[], None]) -> None:
    """Emit `then` or `otherwise` by a condition; `then` alone where no branch is `needed`."""
    if not needed:
        then()
        return
    with T.If(condition):
        with T.Then():
            then()
        with T.Else():
            otherwise()


def scratch(elements: int, dtype: str):
    """A buffer in memory that lives as long as the kernel call (per thread when declared inside a parallel loop)."""
    return T.alloc_buffer((elements,), dtype, scope="global")


class Registers:
    """A bank of sixteen-lane accumulators that LLVM keeps in registers; indices are Python integers.

    One small buffer each, of scope "global": those go on the stack, from where LLVM promotes them. Buffers of scope
    "local", and large ones, would be allocated on the heap, once per tile, and written.
    """

    def __init__(self, vectors: int, dtype: str):
        self._buffers = [T.alloc_buffer((LANES,), dtype, scope="global") for _ in range(vectors)]

    def __getitem__(self, index: int):
        return load(self._buffers[index], 0)

    def __setitem__(self, index: int, value) -> None:
        store(self._buffers[index], 0, value)


def registers(vectors: int, dtype: str):
    """One flat buffer of at most 1 KB on the stack, for indices that LLVM sees through."""
    assert vectors * LANES * 4 <= 1024
    return T.alloc_buffer((vectors * LANES,), dtype, scope="global")


def load(buffer, index, lanes: int = LANES):
    """Vector of `lanes` consecutive elements starting at flat `index`."""
    return buffer.vload([index], f"{buffer.ty.dtype}x{lanes}" if lanes > 1 else buffer.ty.dtype)


def store(buffer, index, value, lanes: int = LANES) -> None:
    """Store `lanes` consecutive elements at flat `index`."""
    T.buffer_store(buffer, value, [T.ramp(index, 1, lanes) if lanes > 1 else index])


def prefetch(buffer, index, into_l1: bool = True) -> None:
    """Ask for the cache line of element `index`, in L2 or in L1 too; addresses behind the buffer are ignored."""
    address = T.address_of(buffer[index])
    arguments = (const(value, "int32", 1) for value in (0, 3 if into_l1 else 2, 1))  # to read, where to, data
    T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", address, *arguments))


def const(value, dtype: str, lanes: int = LANES):
    """A constant in all lanes."""
    scalar = tirx.const(float(value) if dtype.startswith("float") else int(value), dtype)
    return T.broadcast(scalar, lanes) if lanes > 1 else scalar


def f32(value, lanes: int = LANES):
    """A float32 constant in all lanes."""
    return const(value, "float32", lanes)


def intrinsic(dtype: str, name: str, *arguments):
    """An LLVM intrinsic by name."""
    return T.call_llvm_pure_intrin(dtype, name, *arguments)


def convert(value, dtype: str, lanes: int = LANES):
    """Element-wise conversion (zero/sign extension, int -> float, truncation)."""
    return T.cast(value, f"{dtype}x{lanes}" if lanes > 1 else dtype)


def fma(a, b, c, lanes: int = LANES):
    """a * b + c with one rounding."""
    return intrinsic(f"float32x{lanes}", "llvm.fma", a, b, c)


def fenced(product):
    """Sixteen float32, not to be computed in one go with what comes behind: no contraction, no reassociation."""
    return intrinsic("float32x16", "llvm.arithmetic.fence", product)


def maximum(a, b):
    """b when a is NaN, like `maxps`; ordinary maximum otherwise."""
    return T.max(a, b)


def minimum(a, b):
    """b when a is NaN, like `minps`; ordinary minimum otherwise."""
    return T.min(a, b)


def rint(a, lanes: int = LANES):
    """Round float32 half to even (`vrndscaleps`)."""
    return intrinsic(f"float32x{lanes}", "llvm.rint", a)


def to_int32(a, lanes: int = LANES):
    """float32 -> int32, rounding half to even (`cvtps2dq`)."""
    return intrinsic(f"int32x{lanes}", f"llvm.lrint.v{lanes}i32.v{lanes}f32", a)


def let(value):
    """Bind a vector to a name, so that it is computed once however often it is used."""
    return T.Bind(value)


def real(value, dtype: str, zero_point: int = 0, lanes: int = LANES):
    """What a program sees of a loaded vector: float32(q - zero_point) for integers, float32 as it is."""
    if dtype == "float32":
        return value
    wide = value if dtype == "int32" else convert(value, "int32", lanes)
    if zero_point:
        wide = wide - const(zero_point, "int32", lanes)
    return convert(wide, "float32", lanes)


def finish(value, output: Output, lanes: int = LANES):
    """Clamp, round and narrow a float32 vector to the output's dtype (`arithmetic.store`)."""
    if output.low != -math.inf:
        value = maximum(value, f32(np.float32(output.low), lanes))
    if output.high != math.inf:
        value = minimum(value, f32(np.float32(output.high), lanes))
    if output.dtype == "float32":
        return value
    q = to_int32(value, lanes)
    if output.zero_point:
        q = q + const(output.zero_point, "int32", lanes)
    return convert(q, output.dtype, lanes)
