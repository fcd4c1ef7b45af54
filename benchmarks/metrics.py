"""How far one runtime's outputs are from another's, over lists of arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tvm_int8.quantization import sqnr

Outputs = Sequence[np.ndarray]


def sqnr_db(reference: Outputs, actual: Outputs) -> float:
    """Signal to quantisation noise ratio in dB (`tvm_int8.quantization.sqnr`) over all elements of all arrays.

    Examples
    --------
    >>> sqnr_db([np.array([3.0]), np.array([4.0])], [np.array([3.0]), np.array([4.5])])
    20.0
    """
    _check_shapes(reference, actual)
    flat = [np.concatenate([np.ravel(value) for value in values]) for values in (reference, actual)]
    return sqnr.sqnr_db(*flat)


def relative_error(reference: Outputs, actual: Outputs) -> float:
    """Largest absolute difference of any array, relative to that reference array's largest magnitude.

    NaN when an array contains one, so that ``relative_error(...) <= limit`` is false.
    """
    _check_shapes(reference, actual)
    errors = [
        np.abs(np.asarray(r, np.float64) - a).max() / max(np.abs(r).max(), np.finfo(np.float32).tiny)
        for r, a in zip(reference, actual, strict=True)
    ]
    return float(np.max(errors))


def equal_decisions(reference: Outputs, actual: Outputs) -> float:
    """Share of the arrays whose largest element is at the same place, in [0, 1]."""
    return float(np.mean([np.argmax(r) == np.argmax(a) for r, a in zip(reference, actual, strict=True)]))


def _check_shapes(reference: Outputs, actual: Outputs) -> None:
    """Refuse arrays of different shapes, which would broadcast or ravel to the same length."""
    shapes = [[np.shape(value) for value in values] for values in (reference, actual)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"the reference's shapes are {shapes[0]}, the actual ones {shapes[1]}")
