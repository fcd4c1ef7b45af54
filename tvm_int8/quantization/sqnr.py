"""How much of a signal quantisation leaves intact."""

from __future__ import annotations

import math

import numpy as np


def sqnr_db(reference: np.ndarray, value: np.ndarray) -> float:
    """Return the signal-to-quantisation-noise ratio in decibels.

    ``10 * log10(sum(reference ** 2) / sum((reference - value) ** 2))``: the power of the signal over the power of the
    error, as in Widrow and Kollar, *Quantization Noise*, Cambridge University Press 2008. Each bit of a well-scaled
    quantiser is worth about 6 dB.

    Parameters
    ----------
    reference, value : np.ndarray
        The exact and the approximated tensor, of the same shape; any real dtype, computed in float64.

    Returns
    -------
    float
        inf when there is no error (also where both are all zero), -inf when only the reference is all zero, NaN when
        either contains NaN.

    Raises
    ------
    ValueError
        When the shapes differ: broadcasting would hide a mistake.

    Examples
    --------
    >>> sqnr_db([3.0, 4.0], [3.0, 4.5])
    20.0
    """
    reference, value = np.asarray(reference, np.float64), np.asarray(value, np.float64)
    if reference.shape != value.shape:
        raise ValueError(f"sqnr_db: reference has shape {reference.shape}, value {value.shape}; they must be the same")
    signal = float(np.sum(np.square(reference)))
    noise = float(np.sum(np.square(reference - value)))
    if noise == 0.0:
        return math.inf
    if signal == 0.0:
        return math.nan if math.isnan(noise) else -math.inf
    return 10.0 * math.log10(signal / noise)
