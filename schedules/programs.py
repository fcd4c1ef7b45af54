"""Programs as vector code: the steps of `tvm_int8.specs.Program`, instruction by instruction as in `arithmetic`.

Transcendental functions are generators that stop after every few instructions: those of several vectors run in turn.
One after the other, their long chains would fill the CPU's scheduler with instructions that wait.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
from tvm.tirx.script import builder as T

from tvm_int8.quantization import arithmetic
from tvm_int8.specs import LANES, Program

from .vector import (
    const,
    convert,
    f32,
    fenced,
    fma,
    intrinsic,
    let,
    load,
    maximum,
    minimum,
    registers,
    rint,
    store,
    to_int32,
)


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
        return value / _unary("llvm.sqrt")(base)
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
    return lambda a: intrinsic("float32x16", name, a)


#: The vector form of each step of a program, and the generators of `_TRANSCENDENTAL`: the names of `arithmetic.STEPS`.
STEPS = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "fma": fma,
    "max": maximum,
    "min": minimum,
    "neg": lambda a: f32(0) - a,
    "abs": _unary("llvm.fabs"),
    "sqrt": _unary("llvm.sqrt"),
    "round": _unary("llvm.rint"),
    "floor": _unary("llvm.floor"),
    "ceil": _unary("llvm.ceil"),
    "prelu": lambda a, slope: T.Select(a < f32(0), a * slope, a),
}


_TRANSCENDENTAL = {"exp": _exp, "sigmoid": _sigmoid, "tanh": _tanh, "erf": _erf}


def _opaque(value):
    """Pass a vector through a register buffer, behind which TVM's interval analysis does not look.

    The analysis is exponential in chains of names that are used more than once; LLVM sees through the buffer.
    """
    buffer = registers(1, "float32")
    store(buffer, 0, value)
    return load(buffer, 0)


def run_programs(program: Program, columns: Sequence[Sequence]) -> list:
    """Emit a program's steps over several vectors side by side: columns of one vector per operand; the last slots."""
    slots = [list(values) for values in columns]
    for op, *arguments in program.steps:
        taken = [[s[int(a[1:])] if isinstance(a, str) else f32(np.float32(a)) for a in arguments] for s in slots]
        if op in _TRANSCENDENTAL:
            values = _side_by_side([_TRANSCENDENTAL[op](*t) for t in taken])
        else:
            values = [let(STEPS[op](*t)) for t in taken]
        for column, value in zip(slots, values, strict=True):
            column.append(value)
    return [column[-1] for column in slots]


def side_by_side(program: Program) -> int:
    """How many vectors' steps should alternate: more where their chains of dependent instructions are long."""
    return 8 if any(op in _TRANSCENDENTAL for op, *_ in program.steps) else 4


def run_program(program: Program, values: Sequence):
    """Emit a program's steps over vectors, one per operand; returns the vector of its last slot."""
    return run_programs(program, [values])[0]
