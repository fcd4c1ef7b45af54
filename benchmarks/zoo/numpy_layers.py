"""The layers a `GraphBuilder` follows activations with, in NumPy.

Each kernel position is one matrix product over the channels, so that a ResNet-50 takes about a second and no copy of
the input as large as its unfolded windows is ever made. Tensors are float32 [N, C, H, W]; kernels, strides and
dilations are (vertical, horizontal); pads are ONNX's (top, left, bottom, right).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

Pair = tuple[int, int]
Pads = tuple[int, int, int, int]


def conv2d(
    x: np.ndarray, weight: np.ndarray, stride: Pair, pads: Pads, groups: int = 1, dilation: Pair = (1, 1)
) -> np.ndarray:
    """Two-dimensional convolution.

    Parameters
    ----------
    x : numpy.ndarray
        float32 [N, C, H, W].
    weight : numpy.ndarray
        float32 [O, C / groups, kh, kw].
    stride, pads, dilation : tuple of int
        See the module.
    groups : int
        A divisor of C and O.

    Returns
    -------
    numpy.ndarray
        float32 [N, O, H', W'].
    """
    depthwise = groups == x.shape[1] == weight.shape[0]
    taps = np.ascontiguousarray(weight.transpose(2, 3, 0, 1))
    total: np.ndarray | None = None
    for (kh, kw), window in _windows(x, (weight.shape[2], weight.shape[3]), stride, pads, dilation, fill=0.0):
        n, c, *size = window.shape
        if depthwise:
            part = taps[kh, kw][:, :, None] * window
        else:
            flat = np.ascontiguousarray(window).reshape(n, groups, c // groups, -1)
            part = np.matmul(taps[kh, kw].reshape(groups, -1, c // groups), flat).reshape(n, -1, *size)
        total = part if total is None else np.add(total, part, out=total)
    assert total is not None
    return total


def conv2d_transpose(x: np.ndarray, weight: np.ndarray, stride: int, pad: int, output_pad: int) -> np.ndarray:
    """Transposed convolution: every pixel adds its share to the kernel's window around it.

    Parameters
    ----------
    x : numpy.ndarray
        float32 [N, C, H, W].
    weight : numpy.ndarray
        float32 [C, O, k, k].
    stride, pad, output_pad : int
        The same along both axes.

    Returns
    -------
    numpy.ndarray
        float32 [N, O, (H - 1) * stride - 2 * pad + k + output_pad, ...].
    """
    n, c, h, w = x.shape
    kernel = weight.shape[2]
    out_h, out_w = ((size - 1) * stride - 2 * pad + kernel + output_pad for size in (h, w))
    full = np.zeros((n, weight.shape[1], out_h + 2 * pad, out_w + 2 * pad), np.float32)
    flat = x.reshape(n, c, -1)
    for kh in range(kernel):
        for kw in range(kernel):
            part = np.matmul(np.ascontiguousarray(weight[:, :, kh, kw].T), flat).reshape(n, -1, h, w)
            full[:, :, kh : kh + stride * (h - 1) + 1 : stride, kw : kw + stride * (w - 1) + 1 : stride] += part
    return full[:, :, pad : pad + out_h, pad : pad + out_w]


def max_pool2d(x: np.ndarray, kernel: int, stride: int, pads: Pads, ceil: bool = False) -> np.ndarray:
    """Max pooling over square windows; with `ceil` the last window may reach beyond the padded input."""
    pads = _ceil_pads(x, kernel, stride, pads) if ceil else pads
    windows = (window for _, window in _windows(x, (kernel, kernel), (stride, stride), pads, (1, 1), fill=-np.inf))
    result = next(windows).copy()
    for window in windows:
        np.maximum(result, window, out=result)
    return result


def average_pool2d(x: np.ndarray, kernel: int, stride: int, pad: int, count_pads: bool) -> np.ndarray:
    """Mean over square windows; `count_pads` says whether zeros of the padding count as pixels."""
    ones = np.ones((kernel, kernel), np.float32)
    channels, pads = x.shape[1], (pad,) * 4
    each = np.broadcast_to(ones, (channels, 1, kernel, kernel))
    total = conv2d(x, each, (stride, stride), pads, channels)
    if count_pads:
        return total / np.float32(kernel * kernel)
    return total / conv2d(np.ones_like(x[:1, :1]), ones[None, None], (stride, stride), pads)


def resize2d(x: np.ndarray, size: Pair, mode: str) -> np.ndarray:
    """Resize to `size` with half-pixel centres: "linear", or "nearest" to a multiple of the size."""
    if mode == "nearest":
        factors = [new // old for new, old in zip(size, x.shape[2:], strict=True)]
        return x.repeat(factors[0], 2).repeat(factors[1], 3)
    rows, columns = (_interpolation(old, new) for old, new in zip(x.shape[2:], size, strict=True))
    return rows @ x @ columns.T


def depth_to_space(x: np.ndarray, factor: int) -> np.ndarray:
    """Pixel shuffle: channels (c, i, j) become channel c at row offset i and column offset j."""
    n, c, h, w = x.shape
    split = x.reshape(n, c // factor**2, factor, factor, h, w)
    return split.transpose(0, 1, 4, 2, 5, 3).reshape(n, -1, h * factor, w * factor)


def _interpolation(old: int, new: int) -> np.ndarray:
    """Matrix [new, old] of linear interpolation, edges clamped."""
    at = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
    low = np.minimum(at.astype(int), max(old - 2, 0))
    matrix = np.zeros((new, old), np.float32)
    matrix[np.arange(new), low] = 1 - (at - low)
    matrix[np.arange(new), np.minimum(low + 1, old - 1)] += at - low
    return matrix


def _ceil_pads(x: np.ndarray, kernel: int, stride: int, pads: Pads) -> Pads:
    top, left, bottom, right = pads
    missing = [-(size - kernel) % stride for size in (x.shape[2] + top + bottom, x.shape[3] + left + right)]
    return top, left, bottom + missing[0], right + missing[1]


def _windows(
    x: np.ndarray, kernel: Pair, stride: Pair, pads: Pads, dilation: Pair, fill: float
) -> Iterator[tuple[Pair, np.ndarray]]:
    """Yield, for every kernel position (kh, kw), the view of the padded input that position reads."""
    top, left, bottom, right = pads
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill) if any(pads) else x
    reach = [dilation[axis] * (kernel[axis] - 1) for axis in (0, 1)]
    spans = [(padded.shape[2 + axis] - reach[axis] - 1) // stride[axis] * stride[axis] + 1 for axis in (0, 1)]
    for kh in range(kernel[0]):
        for kw in range(kernel[1]):
            row, column = kh * dilation[0], kw * dilation[1]
            rows, columns = slice(row, row + spans[0], stride[0]), slice(column, column + spans[1], stride[1])
            yield (kh, kw), padded[:, :, rows, columns]
