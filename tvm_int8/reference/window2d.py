"""Spatial slices and padding."""

from __future__ import annotations

import numpy as np


def evaluate(spec, inputs, constants) -> np.ndarray:
    """Copies; `pad_value` is stored as it is, so it is the zero point where padding stands for real zero."""
    (data,) = inputs
    pad_value = constants.pad.reshape(-1, 1, 1) if spec.pad_value is None else spec.pad_value
    out = np.full(spec.result.shape, pad_value, data.dtype)
    places = []
    for axis in (0, 1):
        source = np.arange(spec.result.shape[2 + axis]) * spec.step[axis] + spec.start[axis]
        inside = np.flatnonzero((source >= 0) & (source < data.shape[2 + axis]))
        places.append((inside, source[inside]))
    (ys, from_ys), (xs, from_xs) = places
    out[:, :, ys[:, None], xs] = data[:, :, from_ys[:, None], from_xs]
    return out
