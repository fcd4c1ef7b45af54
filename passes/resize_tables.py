"""Which source rows and columns a resize reads, and with which weights: ONNX's coordinate modes as tables."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

ROUNDING: dict[str, Callable] = {
    "round": np.rint,
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": lambda x: np.floor(x + 1e-5),
    "ceil": lambda x: np.ceil(x - 1e-5),
}

MODES = ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel", "tf_half_pixel_for_nn")


def source_coordinates(size: int, target: int, mode: str) -> np.ndarray:
    """Real source coordinate of each of `target` outputs along an axis of `size` inputs.

    `mode` is the `coordinate_transformation_mode` of ONNX's Resize.
    """
    x, ratio = np.arange(target, dtype=np.float64), size / target
    if mode == "align_corners":
        return x * ((size - 1) / (target - 1)) if target > 1 else np.zeros(1)
    if mode == "asymmetric":
        return x * ratio
    if mode == "pytorch_half_pixel" and target == 1:
        return np.zeros(1)
    return (x + 0.5) * ratio - (0.0 if mode == "tf_half_pixel_for_nn" else 0.5)


def axis_table(size: int, target: int, method: str, mode: str, rounding: str) -> tuple[tuple[int, int, float], ...]:
    """(low, high, weight of high) for every output; for "nearest" low is the source and the weight 0."""
    x = source_coordinates(size, target, mode)
    if method == "nearest":
        index = np.clip(ROUNDING[rounding or "floor"](x), 0, size - 1).astype(int)
        return tuple((int(i), int(i), 0.0) for i in index)
    x = np.clip(x, 0, size - 1)
    low = np.minimum(np.floor(x).astype(int), size - 1)
    high = np.minimum(low + 1, size - 1)
    return tuple((int(a), int(b), float(np.float32(c - a))) for a, b, c in zip(low, high, x, strict=True))
