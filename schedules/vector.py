"""The sixteen-lane vector vocabulary in which every kernel of this package is written, over TensorIR's builder.

A kernel is an explicit TensorIR loop nest: Python loops unroll, `T.serial` and `T.parallel` loops stay.  Sixteen lanes
are one zmm register; LLVM splits them in halves on CPUs with 256-bit registers.  Float steps mirror
`tvm_int8.quantization.arithmetic` one to one, fused multiply-adds included, so results agree to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from tvm_int8.quantization import arithmetic
from tvm_int8.specs import LANES, Output, Program


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
    """A float32 product that LLVM must not contract with an addition behind it."""
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


# Transcendental functions are generators that stop after every few instructions: `_side_by_side` runs those of several
# vectors in turn.  One after the other, their long chains would fill the CPU's scheduler with instructions that wait.


def _exp(x):
    x = let(minimum(maximum(x, f32(arithmetic.EXP_LOW)), f32(arithmetic.EXP_HIGH)))
    yield
    n = let(rint(x * f32(arithmetic.LOG2_E)))
    yield
    r = let(fma(n, f32(-arithmetic.LN2_LOW), fma(n, f32(-arithmetic.LN2_HIGH), x)))
    yield
    p = f32(arithmetic.EXP_POLYNOMIAL[0])
    for coefficient in arithmetic.EXP_POLYNOMIAL[1:]:
        p = let(fma(p, r, f32(coefficient)))
        yield
    p = let(fma(p, r * r, r) + f32(1))
    yield
    return p * T.reinterpret("float32x16", (to_int32(n) + const(127, "int32")) << const(23, "int32"))


def _log(x):
    bits = let(T.reinterpret("int32x16", x))
    n = let((bits - const(arithmetic.SQRT_HALF_BITS, "int32", LANES)) >> const(23, "int32", LANES))
    r = let(T.reinterpret("float32x16", bits - (n << const(23, "int32", LANES))) - f32(1))
    n, square = let(convert(n, "float32")), let(r * r)
    p = f32(arithmetic.LOG_POLYNOMIAL[0])
    for coefficient in arithmetic.LOG_POLYNOMIAL[1:]:
        p = fma(p, r, f32(coefficient))
    tail = fma(f32(-0.5), square, fma(n, f32(arithmetic.LN2_LOW), p * (r * square)))
    return fma(n, f32(arithmetic.LN2_HIGH), r + tail)


def _inverse_fourth_root(x):
    bits = T.reinterpret("int32x16", x)
    guess = const(arithmetic.FOURTH_ROOT_BITS, "int32", LANES) - (bits >> const(2, "int32", LANES))
    y, (first, second) = _opaque(T.reinterpret("float32x16", guess)), arithmetic.FOURTH_ROOT_SERIES
    for _ in range(2):
        square = let(y * y)
        error = let(fma(f32(0) - x * square, square, f32(1)))
        y = _opaque(fma(y * error, fma(error, f32(second), f32(first)), y))
    return y


def divide_by_power(value, base, exponent: float):
    """value / base ** exponent for positive normal bases (`arithmetic.divide_by_power`)."""
    base = _opaque(base)
    if exponent == 1:
        return value / base
    if exponent == 0.5:
        return value / _unary("llvm.sqrt")(base, LANES)
    if exponent == 0.75:
        root = _inverse_fourth_root(base)
        return fenced(value * (root * (root * root)))
    (power,) = _side_by_side([_exp(_opaque(_log(base)) * f32(np.float32(-exponent)))])
    return fenced(value * power)


def _sigmoid(x):
    exponent = maximum(x * f32(-arithmetic.LOG2_E), f32(arithmetic.SIGMOID_LOW))
    exponent = let(minimum(exponent, f32(arithmetic.SIGMOID_HIGH)))
    yield
    n = let(rint(exponent))
    yield
    r = let(exponent - n)
    p = f32(arithmetic.EXP2_POLYNOMIAL[0])
    for coefficient in arithmetic.EXP2_POLYNOMIAL[1:]:
        yield
        p = let(fma(p, r, f32(coefficient)))
    power = (to_int32(n) + const(127 + 256, "int32")) << const(23, "int32")
    yield
    negative = _opaque(fma(p, T.reinterpret("float32x16", power), f32(-1)))
    guess = const(arithmetic.RECIPROCAL_BITS, "int32") - T.reinterpret("int32x16", negative)
    y = _opaque(T.reinterpret("float32x16", guess))
    for _ in range(arithmetic.RECIPROCAL_STEPS):
        yield
        error = let(fma(negative, y, f32(1)))
        yield
        y = _opaque(fma(y, error, y))
    return y


def _tanh(x):
    y = yield from _sigmoid(x * f32(2))
    return fma(f32(2), y, f32(-1))


def _erf(x):
    x = let(x)
    magnitude = let(intrinsic("float32x16", "llvm.fabs", x))
    t = let(f32(1) / fma(magnitude, f32(arithmetic.ERF_P), f32(1)))
    yield
    p = f32(arithmetic.ERF_POLYNOMIAL[0])
    for coefficient in arithmetic.ERF_POLYNOMIAL[1:]:
        p = let(fma(p, t, f32(coefficient)))
        yield
    power = yield from _exp(f32(0) - magnitude * magnitude)
    value = let(fma(f32(0) - p * t, power, f32(1)))
    return T.Select(x < f32(0), f32(0) - value, value)


def _side_by_side(generators: Sequence[Generator]) -> list:
    """The results of generators that emit code, each of them bound; their code alternates."""
    results: list = [None] * len(generators)
    running = list(enumerate(generators))
    while running:
        for i, generator in list(running):
            try:
                next(generator)
            except StopIteration as end:
                results[i] = _opaque(let(end.value))
                running.remove((i, generator))
    return results


def _unary(name):
    return lambda a, lanes: intrinsic(f"float32x{lanes}", name, a)


#: The vector form of each step of a program: same names as `arithmetic.STEPS`.
STEPS = {
    "add": lambda a, b, lanes: a + b,
    "sub": lambda a, b, lanes: a - b,
    "mul": lambda a, b, lanes: a * b,
    "div": lambda a, b, lanes: a / b,
    "fma": fma,
    "max": lambda a, b, lanes: maximum(a, b),
    "min": lambda a, b, lanes: minimum(a, b),
    "neg": lambda a, lanes: f32(0, lanes) - a,
    "abs": _unary("llvm.fabs"),
    "sqrt": _unary("llvm.sqrt"),
    "round": _unary("llvm.rint"),
    "floor": _unary("llvm.floor"),
    "ceil": _unary("llvm.ceil"),
    "prelu": lambda a, slope, lanes: T.Select(a < f32(0, lanes), a * slope, a),
}


_TRANSCENDENTAL = {"exp": _exp, "sigmoid": _sigmoid, "tanh": _tanh, "erf": _erf}


def let(value):
    """Bind a vector to a name, so that it is computed once however often it is used."""
    return T.Bind(value)


def _opaque(value):
    """Pass a vector through a register buffer, behind which TVM's interval analysis does not look.

    The analysis is exponential in chains of names that are used more than once; LLVM sees through the buffer.
    """
    buffer = registers(1, "float32")
    store(buffer, 0, value)
    return load(buffer, 0)


def real(value, dtype: str, zero_point: int = 0, lanes: int = LANES):
    """What a program sees of a loaded vector: float32(q - zero_point) for integers, float32 as it is."""
    if dtype == "float32":
        return value
    wide = value if dtype == "int32" else convert(value, "int32", lanes)
    if zero_point:
        wide = wide - const(zero_point, "int32", lanes)
    return convert(wide, "float32", lanes)


def run_programs(program: Program, columns: Sequence[Sequence]) -> list:
    """Emit a program's steps over several vectors side by side: columns of one vector per operand; the last slots."""
    slots = [list(values) for values in columns]
    for op, *arguments in program.steps:
        taken = [[s[int(a[1:])] if isinstance(a, str) else f32(np.float32(a)) for a in arguments] for s in slots]
        if op in _TRANSCENDENTAL:
            values = _side_by_side([_TRANSCENDENTAL[op](*t) for t in taken])
        else:
            values = [let(STEPS[op](*t, LANES)) for t in taken]
        for column, value in zip(slots, values, strict=True):
            column.append(value)
    return [column[-1] for column in slots]


def side_by_side(program: Program) -> int:
    """How many vectors' steps should alternate: more where their chains of dependent instructions are long."""
    return 8 if any(op in _TRANSCENDENTAL for op, *_ in program.steps) else 4


def run_program(program: Program, values: Sequence):
    """Emit a program's steps over vectors, one per operand; returns the vector of its last slot."""
    return run_programs(program, [values])[0]


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
