"""The step size with which a uniform quantiser has the least mean squared error, for values of a known density.

A quantiser of 2^bits levels, at odd multiples of half a step to either side of the mean, errs in two ways: by rounding
within its range, which a smaller step reduces, and by clipping beyond it, which a larger one does.

    mse(step) = 2 * ( sum_i  integral over [i step, (i + 1) step] of (x - (i + 1/2) step)^2 p(x) dx      i < levels / 2
                    +        integral from levels / 2 * step on of (x - (levels - 1) / 2 * step)^2 p(x) dx )

Sources: J. Max, *Quantizing for minimum distortion*, 1960; D. Hui and D. Neuhoff, *Asymptotic analysis of optimal
fixed-rate uniform scalar quantization*, 2001; used for networks by Lin, Talathi and Annapureddy, *Fixed point
quantization of deep convolutional networks*, 2016 (arXiv:1511.06393).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

MAX_BITS = 16
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)  # exact to rounding: a cell is 1.6 sigmas at most
_NEGLIGIBLE = 40.0  # sigmas beyond which the densities underflow every sum
_GOLDEN = (math.sqrt(5) - 1) / 2
_PRECISION = 1e-9  # of the step's logarithm, whose error is the square of that


@dataclass(frozen=True)
class _Density:
    """Symmetric about zero, variance one; `overload(t, r)` is the integral of (x - r)^2 p(x) from t on."""

    p: Callable[[np.ndarray], np.ndarray]
    overload: Callable[[float, float], float]


def _gaussian_overload(t: float, r: float) -> float:
    at_t = math.exp(-t * t / 2) / math.sqrt(2 * math.pi)
    return (1 + r * r) * math.erfc(t / math.sqrt(2)) / 2 + (t - 2 * r) * at_t


def _laplacian_overload(t: float, r: float) -> float:
    rate, d = math.sqrt(2), t - r
    return math.exp(-rate * t) / 2 * (d * d + 2 * d / rate + 2 / rate**2)


_DENSITIES = {
    "gaussian": _Density(lambda x: np.exp(-x * x / 2) / math.sqrt(2 * math.pi), _gaussian_overload),
    "laplacian": _Density(lambda x: np.exp(-math.sqrt(2) * x) / math.sqrt(2), _laplacian_overload),
}


@cache
def optimal_step(density: str, bits: int) -> tuple[float, float]:
    """Return the optimal step of a uniform quantiser and what it achieves.

    Parameters
    ----------
    density : str
        ``"gaussian"``, ``"laplacian"`` or ``"uniform"``.
    bits : int
        1 to 16; the quantiser has ``2 ** bits`` levels.

    Returns
    -------
    step : float
        In standard deviations.
    sqnr_db : float
        Variance over mean squared error, in dB.

    Examples
    --------
    >>> ["{:.4f} {:.2f}".format(*optimal_step("gaussian", bits)) for bits in (1, 2, 8)]
    ['1.5958 4.40', '0.9957 9.25', '0.0308 40.57']
    """
    if not 1 <= bits <= MAX_BITS:
        raise ValueError(f"optimal_step: {bits} bits; expected 1 to {MAX_BITS}")
    if density == "uniform":
        return math.sqrt(12) / 2**bits, 20 * math.log10(2**bits)
    if density not in _DENSITIES:
        raise ValueError(f"optimal_step: density {density!r}; expected one of {['uniform', *_DENSITIES]}")
    chosen = _DENSITIES[density]
    step = _minimize(lambda step: _mean_squared_error(chosen, 2**bits, step), 1.0 / 2**bits, 32.0 / 2**bits)
    return step, -10 * math.log10(_mean_squared_error(chosen, 2**bits, step))


def _mean_squared_error(density: _Density, levels: int, step: float) -> float:
    cells = min(levels // 2, math.ceil(_NEGLIGIBLE / step))
    from_middle = _NODES * step / 2
    x = (np.arange(cells)[:, None] + 0.5) * step + from_middle
    rounding = float((density.p(x) * from_middle**2 @ _WEIGHTS).sum()) * step / 2
    return 2 * (rounding + density.overload(levels / 2 * step, (levels - 1) / 2 * step))


def _minimize(function: Callable[[float], float], low: float, high: float) -> float:
    """Golden-section search of a unimodal function's minimum, on a logarithmic scale."""
    a, b = math.log(low), math.log(high)
    c, d = b - _GOLDEN * (b - a), a + _GOLDEN * (b - a)
    at_c, at_d = function(math.exp(c)), function(math.exp(d))
    while b - a > _PRECISION:
        if at_c < at_d:
            b, d, at_d = d, c, at_c
            c = b - _GOLDEN * (b - a)
            at_c = function(math.exp(c))
        else:
            a, c, at_c = c, d, at_d
            d = a + _GOLDEN * (b - a)
            at_d = function(math.exp(d))
    return math.exp((a + b) / 2)
