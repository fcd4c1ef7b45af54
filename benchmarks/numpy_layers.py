"""The few layers `benchmarks.generate` needs to follow activations with, in NumPy.

Each kernel position is one matrix product over the channels, so that a ResNet-50 takes about a second and no copy of
the input as large as its unfolded windows is ever made.
"""

from __future__ import annotations

import numpy as np


def conv2d(x: np.ndarray, weight: np.ndarray, stride: int, pad: int, groups: int = 1) -> np.ndarray:
    """Two-dimensional convolution with equal padding on all sides.

    Parameters
    ----------
    x : numpy.ndarray
        float32 [N, C, H, W].
    weight : numpy.ndarray
        float32 [O, C / groups, kh, kw].
    stride, pad : int
        The same along both axes.
    groups : int
        1, or C for a depthwise convolution with O = C.

    Returns
    -------
    numpy.ndarray
        float32 [N, O, H', W'].
    """
    if groups not in (1, x.shape[1]):
        raise ValueError(f"groups is {groups}, expected 1 or the number of channels, {x.shape[1]}")
    taps = _windows(x, weight.shape[2:], stride, pad, fill=0.0)
    total = np.zeros((), x.dtype)
    for (kh, kw), window in taps:
        tap = weight[:, :, kh, kw]
        if groups == 1:
            flat = np.ascontiguousarray(window).reshape(*window.shape[:2], -1)
            total = total + (tap @ flat).reshape(len(x), -1, *window.shape[2:])
        else:
            total = total + tap[:, :, None] * window
    return total


def max_pool2d(x: np.ndarray, kernel: int, stride: int, pad: int) -> np.ndarray:
    """Max pooling over square windows: float32 [N, C, H, W] to [N, C, H', W']."""
    windows = (window for _, window in _windows(x, (kernel, kernel), stride, pad, fill=-np.inf))
    result = next(windows).copy()
    for window in windows:
        np.maximum(result, window, out=result)
    return result


def _windows(x: np.ndarray, kernel: tuple[int, ...], stride: int, pad: int, fill: float):
    """Yield, for every kernel position (kh, kw), the view of the padded input that position reads."""
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)), constant_values=fill) if pad else x
    out_h, out_w = ((size - k) // stride + 1 for size, k in zip(padded.shape[2:], kernel, strict=True))
    for kh in range(kernel[0]):
        for kw in range(kernel[1]):
            rows = slice(kh, kh + stride * (out_h - 1) + 1, stride)
            columns = slice(kw, kw + stride * (out_w - 1) + 1, stride)
            yield (kh, kw), padded[:, :, rows, columns]
