"""How far one runtime's outputs are from another's."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

Outputs = Iterable[np.ndarray]


def sqnr_db(reference: Outputs, actual: Outputs) -> float:
    """Signal to quantisation noise ratio over all elements of all arrays.

    ``10 log10(sum(r^2) / sum((r - a)^2))``

    Returns
    -------
    float
        In dB; infinity when the arrays are equal.

    Examples
    --------
    >>> round(sqnr_db([np.array([10.0])], [np.array([9.0])]), 3)
    20.0
    """
    signal = noise = 0.0
    for r, a in zip(reference, actual, strict=True):
        r64, a64 = np.asarray(r, np.float64), np.asarray(a, np.float64)
        signal += float((r64**2).sum())
        noise += float(((r64 - a64) ** 2).sum())
    return float("inf") if noise == 0 else 10 * float(np.log10(max(signal, np.finfo(float).tiny) / noise))


def relative_error(reference: Outputs, actual: Outputs) -> float:
    """Largest absolute difference of any array, relative to that reference array's largest magnitude."""
    worst = 0.0
    for r, a in zip(reference, actual, strict=True):
        if np.shape(r) != np.shape(a):
            raise ValueError(f"shapes differ: {np.shape(r)} and {np.shape(a)}")
        worst = max(worst, float(np.abs(np.asarray(r, np.float64) - a).max() / max(np.abs(r).max(), 1e-30)))
    return worst


def equal_decisions(reference: Outputs, actual: Outputs) -> float:
    """Share of the arrays whose largest element is at the same place, in [0, 1]."""
    return float(np.mean([np.argmax(r) == np.argmax(a) for r, a in zip(reference, actual, strict=True)]))
