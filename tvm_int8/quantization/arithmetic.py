"""The arithmetic of the compiled network, stated in NumPy: every kernel is bit-exact against these functions.

    real = scale * (q - zero_point)                 dequantize
    q    = clip(rint(real / scale) + zero_point)    quantize, rounding half to even, saturating

A kernel accumulates in int32 (or float32), turns the accumulator into float32 and runs a straight-line `Program`
over it (`tvm_int8.specs`).  Programs name their fused multiply-adds explicitly, so there is one rounding per step on
either side.  Transcendental functions are polynomials in those same steps (Cephes-style coefficients), not libm calls.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

F32 = np.float32

LOG2_E = F32(1.44269504088896341)
LN2_HIGH = F32(0.693359375)
LN2_LOW = F32(-2.12194440e-4)
# exp(r) for |r| <= ln(2)/2, highest power first (S. Moshier, Cephes `expf`); the tail is r^2 * poly + r + 1.
EXP_POLYNOMIAL = tuple(
    F32(c)
    for c in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
)
EXP_LOW, EXP_HIGH = F32(-87.0), F32(88.0)  # 2**n stays a normal number
# log(1 + r) for sqrt(1/2) <= 1 + r < sqrt(2), highest power first (Cephes `logf`): r - r^2 / 2 + r^3 * poly.
LOG_POLYNOMIAL = tuple(
    F32(c)
    for c in (
        7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
        -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
    )
)  # fmt: skip
SQRT_HALF_BITS = 0x3F3504F3  # of float32 sqrt(1/2)
# The bits of x ** -1/4 are about this minus a quarter of x's bits; 1 - x * y**4 is then below 0.13, and 0.001 after one
# step y += y * e * (1/4 + 5/32 e), the series of (1 - e) ** -1/4. Two steps are exact to float32's rounding.
FOURTH_ROOT_BITS = 0x4F583800
FOURTH_ROOT_SERIES = F32(0.25), F32(0.15625)
# 2**r for |r| <= 1/2 within 2e-7, highest power first: least relative error, fitted with weights.
EXP2_POLYNOMIAL = tuple(
    F32(c) for c in (1.3276471e-3, 9.6755419e-3, 5.5507131e-2, 2.4022120e-1, 6.9314694e-1, 1.0000001)
)
SIGMOID_LOW, SIGMOID_HIGH = F32(-126.0), F32(92.0)  # of -x in powers of two; sigmoid(-64) is 1.6e-28
# The bits of 1 / x are about a constant minus x's bits, within 5 %; this one is for -x. Every step y += y * (1 - x y)
# squares the error.
RECIPROCAL_BITS = 0x7EF30000 - 0x80000000
RECIPROCAL_STEPS = 3
# erf(x) = 1 - (a1 t + ... + a5 t^5) exp(-x^2), t = 1 / (1 + p x), |error| <= 1.5e-7 (Abramowitz & Stegun 7.1.26).
ERF_P = F32(0.3275911)
ERF_POLYNOMIAL = tuple(F32(c) for c in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592))


def fma(a, b, c) -> np.ndarray:
    """float32 fused multiply-add with a single rounding (round-to-odd in float64: Boldo and Melquiond, 2008)."""
    product = np.asarray(a, np.float64) * np.asarray(b, np.float64)
    addend = np.asarray(c, np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        total = product + addend
        back = total - product
        error = (product - (total - back)) + (addend - back)
        even = (np.asarray(total).view(np.int64) & 1) == 0
        nudge = even & (error != 0) & np.isfinite(total)
        total = np.where(nudge, np.nextafter(total, np.where(error > 0, np.inf, -np.inf)), total)
        return total.astype(F32)


def exp(x) -> np.ndarray:
    """float32 exp by range reduction to 2**n * exp(r)."""
    x = np.minimum(np.maximum(np.asarray(x, F32), EXP_LOW), EXP_HIGH)
    n = np.rint(x * LOG2_E)
    r = fma(n, -LN2_LOW, fma(n, -LN2_HIGH, x))
    p = np.full_like(r, EXP_POLYNOMIAL[0])
    for coefficient in EXP_POLYNOMIAL[1:]:
        p = fma(p, r, coefficient)
    p = fma(p, r * r, r) + F32(1)
    power = ((n.astype(np.int32) + 127) << 23).view(F32)
    return p * power


def log(x) -> np.ndarray:
    """float32 natural logarithm of positive normal numbers: 2**n * (1 + r) with 1 + r within sqrt(2) of one."""
    bits = np.asarray(x, F32).view(np.int32)
    n = (bits - np.int32(SQRT_HALF_BITS)) >> 23
    r = (bits - (n << 23)).view(F32) - F32(1)
    n, square = n.astype(F32), r * r
    p = np.full_like(r, LOG_POLYNOMIAL[0])
    for coefficient in LOG_POLYNOMIAL[1:]:
        p = fma(p, r, coefficient)
    tail = fma(F32(-0.5), square, fma(n, LN2_LOW, p * (r * square)))
    return fma(n, LN2_HIGH, r + tail)


def inverse_fourth_root(x) -> np.ndarray:
    """x ** -1/4 of positive normal numbers."""
    x = np.asarray(x, F32)
    y = (np.int32(FOURTH_ROOT_BITS) - (x.view(np.int32) >> 2)).view(F32)
    for _ in range(2):
        square = y * y
        error = fma(-(x * square), square, F32(1))
        y = fma(y * error, fma(error, FOURTH_ROOT_SERIES[1], FOURTH_ROOT_SERIES[0]), y)
    return y


def divide_by_power(value, base, exponent: float) -> np.ndarray:
    """value / base ** exponent for positive normal bases."""
    value, base = np.asarray(value, F32), np.asarray(base, F32)
    if exponent == 1:
        return value / base
    if exponent == 0.5:
        return value / np.sqrt(base)
    if exponent == 0.75:
        root = inverse_fourth_root(base)
        return value * (root * (root * root))
    return value * exp(log(base) * F32(-exponent))


def sigmoid(x) -> np.ndarray:
    """1 / (1 + 2**(-x log2 e)), within 2e-7; the reciprocal by Newton's method, faster than a division."""
    exponent = np.minimum(np.maximum(np.asarray(x, F32) * -LOG2_E, SIGMOID_LOW), SIGMOID_HIGH)
    n = np.rint(exponent)
    r = exponent - n
    p = np.full_like(r, EXP2_POLYNOMIAL[0])
    for coefficient in EXP2_POLYNOMIAL[1:]:
        p = fma(p, r, coefficient)
    negative_power = ((n.astype(np.int32) + np.int32(127 + 256)) << 23).view(F32)
    negative = fma(p, negative_power, F32(-1))
    y = (np.int32(RECIPROCAL_BITS) - negative.view(np.int32)).view(F32)
    for _ in range(RECIPROCAL_STEPS):
        y = fma(y, fma(negative, y, F32(1)), y)
    return y


def tanh(x) -> np.ndarray:
    """2 * sigmoid(2 x) - 1."""
    return fma(F32(2), sigmoid(np.asarray(x, F32) * F32(2)), F32(-1))


def erf(x) -> np.ndarray:
    """Abramowitz and Stegun 7.1.26, odd in x."""
    x = np.asarray(x, F32)
    magnitude = np.abs(x)
    t = F32(1) / fma(magnitude, ERF_P, F32(1))
    p = np.full_like(t, ERF_POLYNOMIAL[0])
    for coefficient in ERF_POLYNOMIAL[1:]:
        p = fma(p, t, coefficient)
    value = fma(-(p * t), exp(-(magnitude * magnitude)), F32(1))
    return np.where(x < 0, -value, value)


#: The steps a `Program` may use: name -> NumPy function over float32 arrays.
STEPS: dict[str, Callable] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "fma": fma,
    "max": np.maximum,
    "min": np.minimum,
    "neg": lambda a: -a,
    "abs": np.abs,
    "sqrt": np.sqrt,
    "round": np.rint,
    "floor": np.floor,
    "ceil": np.ceil,
    "exp": exp,
    "sigmoid": sigmoid,
    "tanh": tanh,
    "erf": erf,
    "prelu": lambda a, slope: np.where(a < 0, a * slope, a),
}


def run_program(program, values) -> np.ndarray:
    """Evaluate a `Program` on float32 arrays, one per operand, broadcastable against each other."""
    slots = [np.asarray(value, F32) for value in values]
    with np.errstate(all="ignore"):
        for op, *arguments in program.steps:
            slots.append(np.asarray(STEPS[op](*(_argument(slots, a) for a in arguments)), F32))
    return slots[-1]


def _argument(slots, argument):
    return slots[int(argument[1:])] if isinstance(argument, str) else F32(argument)


def store(value, output) -> np.ndarray:
    """float32 -> the output's dtype: clamp to [low, high], round half to even, add the zero point."""
    if output.dtype == "float32":
        return np.minimum(np.maximum(value, F32(output.low)), F32(output.high)) if output.clamps else value
    clamped = np.minimum(np.maximum(value, F32(output.low)), F32(output.high))
    return (np.rint(clamped).astype(np.int32) + np.int32(output.zero_point)).astype(output.dtype)


def dequantize(q, scale, zero_point) -> np.ndarray:
    """real = scale * (q - zero_point), float32; scale and zero point broadcast."""
    return (q.astype(np.int32) - np.int32(zero_point)).astype(F32) * np.asarray(scale, F32)


def quantize(real, scale, zero_point, dtype="uint8") -> np.ndarray:
    """q = saturate(rint(real / scale) + zero_point)."""
    info = np.iinfo(dtype)
    q = np.rint(np.asarray(real, F32) / np.asarray(scale, F32)) + np.asarray(zero_point, F32)
    return np.clip(q, info.min, info.max).astype(dtype)


def conv2d_accumulate(data, weight, strides=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=1, pad_value=0):
    """Convolution as the accumulators see it.

    Parameters
    ----------
    data : ndarray [N, C, H, W], uint8 | int8 | float32
    weight : ndarray [O, C / groups, KH, KW], int8 | float32
    padding : (top, left, bottom, right)
    pad_value : the zero point of `data`, which stands for real zero; one for all channels, or [C]

    Returns
    -------
    ndarray [N, O, OH, OW], int32 for integer operands (exact), float32 otherwise
    """
    top, left, bottom, right = padding
    integer = np.issubdtype(data.dtype, np.integer)
    n, c, h, w = data.shape
    padded = np.empty((n, c, h + top + bottom, w + left + right), data.dtype)
    padded[:] = np.reshape(pad_value, (-1, 1, 1))
    padded[:, :, top : top + h, left : left + w] = data
    data = padded
    h, w = data.shape[2:]
    o, cg, kh, kw = weight.shape
    oh = (h - dilation[0] * (kh - 1) - 1) // strides[0] + 1
    ow = (w - dilation[1] * (kw - 1) - 1) // strides[1] + 1
    # float64 holds every partial sum of products of 8-bit numbers exactly, and BLAS does the work
    data = data.astype(np.float64).reshape(n, groups, c // groups, h, w)
    weight = weight.astype(np.float64).reshape(groups, o // groups, cg, kh, kw)
    out = np.zeros((n, groups, o // groups, oh, ow))
    for y in range(kh):
        for x in range(kw):
            ys, xs = y * dilation[0], x * dilation[1]
            window = data[
                :,
                :,
                :,
                ys : ys + (oh - 1) * strides[0] + 1 : strides[0],
                xs : xs + (ow - 1) * strides[1] + 1 : strides[1],
            ]
            out += np.einsum("ngchw,goc->ngohw", window, weight[..., y, x], optimize=True)
    out = out.reshape(n, o, oh, ow)
    return out.astype(np.int64).astype(np.int32) if integer else out.astype(F32)
