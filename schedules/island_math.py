"""Transcendental functions of float islands as polynomials, so that a vector loop carries them without calls of libm.

Everything is float32 arithmetic on scalars; the vectoriser makes vectors of it.  Largest relative errors over the whole
range (`tests/schedules/test_islands.py`): exp 8e-8, log 8e-8, log1p 2e-7, sigmoid 1.4e-7, tanh 2.6e-7, erf 3.4e-7;
power by quarters 2.2e-7, by any exponent 6e-8 * |log(result)|, at most 5e-6.

Sources    exp, log: S. Moshier, Cephes `expf` and `logf`.  tanh, erf: the rational approximations of Eigen
           (`MathFunctionsImpl.h`).  log1p: D. Goldberg, "What every computer scientist should know", theorem 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from tvm import tirx
from tvm.ir.prim import expr as prim

from tvm_int8.quantization import arithmetic

from .island_expressions import Expr, dtype_of, is_call, rewrite

_LOG_POLYNOMIAL = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
    2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip
_TANH_ODD = (
    -2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08, 1.48572235717979e-05,
    6.37261928875436e-04, 4.89352455891786e-03,
)  # fmt: skip
_TANH_EVEN = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)
_TANH_LIMIT, _TANH_LINEAR = 7.90531110763549805, 4e-4
_ERF_ODD = (
    -2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05, -7.34990630326855e-04,
    -2.95459980854025e-03, -1.60960333262415e-02,
)  # fmt: skip
_ERF_EVEN = (
    -1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03, -1.42647390514189e-02,
)  # fmt: skip
_SQRT_HALF_BITS = 0x3F3504F3
_MAX_INTEGER_POWER = 32


def f32(value: float) -> Expr:
    """A float32 constant."""
    return tirx.const(float(np.float32(value)), "float32")


def i32(value: int) -> Expr:
    """An int32 constant."""
    return tirx.const(int(value), "int32")


def let(value: Expr, body: Callable[[Expr], Expr]) -> Expr:
    """`body` of a name for `value`, which is computed once however often the name is used."""
    name = tirx.Var("t", dtype_of(value))
    return prim.Let(name, value, body(name))


def fma(a: Expr, b: Expr, c: Expr) -> Expr:
    """a * b + c, one rounding."""
    return tirx.call_llvm_pure_intrin("float32", "llvm.fma", a, b, c)


def polynomial(x: Expr, coefficients: Sequence[float]) -> Expr:
    """Horner's scheme, highest power first."""
    value = f32(coefficients[0])
    for coefficient in coefficients[1:]:
        value = fma(value, x, f32(coefficient))
    return value


def _bits(x: Expr) -> Expr:
    return tirx.reinterpret("int32", x)


def _power_of_two(n: Expr) -> Expr:
    return tirx.reinterpret("float32", (n + i32(127)) << i32(23))


def exp(x: Expr) -> Expr:
    """0 below -104, inf above 88.8, denormal results included; NaN stays NaN.

    The order of min's and max's operands matters: `maxps` returns its second one when either is NaN.
    """

    def scaled(p, n):
        # 2**n in two factors, because n reaches from -150 to 128.
        half = n >> i32(1)
        return p * _power_of_two(half) * _power_of_two(n - half)

    def reduced(x, n):
        r = fma(n, f32(-arithmetic.LN2_LOW), fma(n, f32(-arithmetic.LN2_HIGH), x))
        count = tirx.call_llvm_pure_intrin("int32", "llvm.lrint", n)
        tail = lambda r: fma(polynomial(r, arithmetic.EXP_POLYNOMIAL), r * r, r) + f32(1)  # noqa: E731
        return let(r, lambda r: let(count, lambda count: scaled(tail(r), count)))

    clamped = prim.Min(f32(89), prim.Max(f32(-104), x))
    rounded = lambda x: tirx.call_llvm_pure_intrin("float32", "llvm.rint", x * f32(arithmetic.LOG2_E))  # noqa: E731
    return let(clamped, lambda x: let(rounded(x), lambda n: reduced(x, n)))


def log(x: Expr) -> Expr:
    """-inf at 0, NaN below, inf at inf; exact exponent of denormals."""

    def special(x, result):
        bad = prim.Select(prim.EQ(x, f32(0)), f32(-math.inf), f32(math.nan))
        return prim.Select(x > f32(0), prim.Select(x < f32(math.inf), result, f32(math.inf)), bad)

    def mantissa(f, e):
        square = f * f
        y = fma(e, f32(arithmetic.LN2_LOW), f * square * polynomial(f, _LOG_POLYNOMIAL))
        return fma(e, f32(arithmetic.LN2_HIGH), f + fma(f32(-0.5), square, y))

    def split(bits, offset):
        k = (bits - i32(_SQRT_HALF_BITS)) >> i32(23)  # the exponent, mantissas from sqrt(1/2) to sqrt(2)
        f = lambda k: tirx.reinterpret("float32", bits - (k << i32(23))) - f32(1)  # noqa: E731
        e = lambda k: tirx.Cast("float32", k) + offset  # noqa: E731
        return let(k, lambda k: let(f(k), lambda f: let(e(k), lambda e: mantissa(f, e))))

    def normal(x):
        tiny = x < f32(2.0**-126)
        bits = _bits(prim.Select(tiny, x * f32(2.0**23), x))
        return let(bits, lambda bits: special(x, split(bits, prim.Select(tiny, f32(-23), f32(0)))))

    return let(x, normal)


def log1p(x: Expr) -> Expr:
    """log(1 + x), accurate around 0."""

    def corrected(x, u):
        exact = prim.Select(prim.EQ(u, f32(1)), f32(1), u - f32(1))
        value = prim.Select(u < f32(math.inf), log(u) * (x / exact), u)
        return prim.Select(prim.EQ(u, f32(1)), x, value)

    return let(x, lambda x: let(x + f32(1), lambda u: corrected(x, u)))


def sigmoid(x: Expr) -> Expr:
    """1 / (1 + exp(-x))."""
    return f32(1) / (f32(1) + exp(f32(0) - x))


def tanh(x: Expr) -> Expr:
    """Odd over even polynomial; the argument itself close to 0."""

    def rational(x, square):
        return x * polynomial(square, _TANH_ODD) / polynomial(square, _TANH_EVEN)

    def clamped(x):
        inside = prim.Min(f32(_TANH_LIMIT), prim.Max(f32(-_TANH_LIMIT), x))
        value = let(inside, lambda y: let(y * y, lambda square: rational(y, square)))
        return prim.Select(tirx.abs(x) < f32(_TANH_LINEAR), x, value)

    return let(x, clamped)


def sinh(x: Expr) -> Expr:
    """(exp(x) - exp(-x)) / 2, the Taylor series below 0.5 where that cancels."""

    def both(x, e):
        far = f32(0.5) * e - f32(0.5) / e
        square = x * x
        near = fma(square * x, polynomial(square, (1 / 362880, 1 / 5040, 1 / 120, 1 / 6)), x)
        return prim.Select(tirx.abs(x) < f32(0.5), near, far)

    return let(x, lambda x: let(exp(x), lambda e: both(x, e)))


def cosh(x: Expr) -> Expr:
    """(exp(x) + exp(-x)) / 2."""
    return let(exp(x), lambda e: f32(0.5) * e + f32(0.5) / e)


def erf(x: Expr) -> Expr:
    """Odd over even polynomial."""
    inside = prim.Min(f32(4), prim.Max(f32(-4), x))
    rational = lambda y, s: y * polynomial(s, _ERF_ODD) / polynomial(s, _ERF_EVEN)  # noqa: E731
    return let(inside, lambda y: let(y * y, lambda s: rational(y, s)))


def _integer_power(x: Expr, n: int) -> Expr:
    if n == 1:
        return x
    half = let(_integer_power(x, n // 2), lambda h: h * h)
    return half * x if n % 2 else half


def _constant_power(x: Expr, c: float) -> Expr:
    """Roots and multiplications for quarters and small integers, else exp(c * log(x))."""
    if c == 0:
        return f32(1)
    if c < 0 and (4 * c).is_integer() and -c <= _MAX_INTEGER_POWER:
        return f32(1) / _constant_power(x, -c)
    whole, quarters = int(c), (c - int(c)) * 4
    if not quarters.is_integer() or not 0 < c <= _MAX_INTEGER_POWER:
        return _general_power(x, f32(c)) if c.is_integer() else exp(f32(c) * log(x))

    def product(x):
        root = tirx.sqrt(x)
        fraction = {
            0: None,
            1: tirx.sqrt(root),
            2: root,
            3: let(root, lambda r: r * tirx.sqrt(r)),
        }[int(quarters)]
        parts = [part for part in (_integer_power(x, whole) if whole else None, fraction) if part is not None]
        return parts[0] if len(parts) == 1 else parts[0] * parts[1]

    return let(x, product)


def _general_power(x: Expr, y: Expr) -> Expr:
    """x**y by |x|, the sign from y's parity: NaN for negative x and fractional y, 1 for y = 0."""

    def signed(x, y, size):
        half = y * f32(0.5)
        whole = prim.Select(prim.NE(tirx.floor(half), half), f32(0) - size, size)
        negative = prim.Select(prim.EQ(tirx.floor(y), y), whole, f32(math.nan))
        value = prim.Select(x < f32(0), negative, size)
        return prim.Select(prim.EQ(y, f32(0)), f32(1), prim.Select(prim.EQ(x, f32(1)), f32(1), value))

    sized = lambda x, y: let(exp(y * log(tirx.abs(x))), lambda size: signed(x, y, size))  # noqa: E731
    return let(x, lambda x: let(y, lambda y: sized(x, y)))


def power(x: Expr, y: Expr) -> Expr:
    """x**y; a constant exponent chooses the cheapest way."""
    return _constant_power(x, float(y.value)) if isinstance(y, prim.FloatImm) else _general_power(x, y)


_LN2, _LN10 = math.log(2), math.log(10)
_FUNCTIONS: dict[str, Callable[..., Expr]] = {
    "exp": exp,
    "exp2": lambda x: exp(x * f32(_LN2)),
    "exp10": lambda x: exp(x * f32(_LN10)),
    "log": log,
    "log2": lambda x: log(x) * f32(1 / _LN2),
    "log10": lambda x: log(x) * f32(1 / _LN10),
    "log1p": log1p,
    "sigmoid": sigmoid,
    "tanh": tanh,
    "sinh": sinh,
    "cosh": cosh,
    "erf": erf,
    "pow": power,
    "power": power,
}


def vectorizable(expr: Expr) -> Expr:
    """The expression with its float32 transcendental functions written as polynomials."""

    def change(node):
        for name, function in _FUNCTIONS.items():
            if is_call(node, name) and dtype_of(node) == "float32":
                return function(*node.args)
        return None

    return rewrite(expr, change)
