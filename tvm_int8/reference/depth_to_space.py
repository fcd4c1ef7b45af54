"""Pixels out of channels."""

from __future__ import annotations

import numpy as np


def evaluate(spec, inputs, constants) -> np.ndarray:
    """Copies."""
    (data,) = inputs
    n, channels, height, width = data.shape
    factor = spec.factor
    depth = channels // factor**2
    if spec.adjacent:
        moved = data.reshape(n, depth, factor, factor, height, width).transpose(0, 1, 4, 2, 5, 3)
    else:
        moved = data.reshape(n, factor, factor, depth, height, width).transpose(0, 3, 4, 1, 5, 2)
    return moved.reshape(n, depth, height * factor, width * factor)
