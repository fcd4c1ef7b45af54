"""conv2d, depthwise, grouped and transposed convolution, dense."""

from __future__ import annotations

import numpy as np

from tvm_int8.quantization import arithmetic

from .elementwise import finish


def accumulate(spec, data, constants) -> np.ndarray:
    """The accumulators before the epilogue: int32 (exact) or float32."""
    data = data if data.dtype == np.float32 else data.astype(np.int32)
    if spec.transposed:
        acc = _transposed(spec, data, constants.weight)
    else:
        pad_value = constants.pad if spec.pad_value is None else spec.pad_value
        acc = arithmetic.conv2d_accumulate(
            data, constants.weight, spec.strides, spec.padding, spec.dilation, spec.groups, pad_value
        )
    if constants.bias is not None:
        acc = acc + constants.bias.reshape(1, -1, 1, 1).astype(acc.dtype)
    return acc


def _transposed(spec, data, weight):
    """Stride-dilated input, flipped kernel: the definition of transposed convolution as a convolution.

    Positions between the input's elements and outside of it stand for real zero, so they hold the zero point.
    """
    n, c, h, w = data.shape
    stride_h, stride_w = spec.strides
    (kh, kw), (dh, dw), g = spec.kernel, spec.dilation, spec.groups
    top, left, _, _ = spec.padding
    _, _, oh, ow = spec.result.shape
    dilated = np.full((n, c, (h - 1) * stride_h + 1, (w - 1) * stride_w + 1), spec.pad_value, data.dtype)
    dilated[:, :, ::stride_h, ::stride_w] = data
    before_h, before_w = dh * (kh - 1) - top, dw * (kw - 1) - left
    after_h = oh + dh * (kh - 1) - dilated.shape[2] - before_h
    after_w = ow + dw * (kw - 1) - dilated.shape[3] - before_w
    dilated = _pad_or_crop(dilated, (before_h, before_w, after_h, after_w), spec.pad_value)
    i, og = weight.shape[:2]
    flipped = (
        weight[:, :, ::-1, ::-1].reshape(g, i // g, og, kh, kw).transpose(0, 2, 1, 3, 4).reshape(g * og, i // g, kh, kw)
    )
    return arithmetic.conv2d_accumulate(dilated, flipped, (1, 1), (0, 0, 0, 0), spec.dilation, g, spec.pad_value)


def _pad_or_crop(data, amounts, value):
    top, left, bottom, right = amounts
    data = data[:, :, max(-top, 0) : data.shape[2] - max(-bottom, 0), max(-left, 0) : data.shape[3] - max(-right, 0)]
    grow = [(0, 0), (0, 0), (max(top, 0), max(bottom, 0)), (max(left, 0), max(right, 0))]
    return np.pad(data, grow, constant_values=value)


def evaluate(spec, inputs, constants) -> np.ndarray:
    """Convolution, then the program over its accumulators."""
    return finish(spec, inputs[1:], constants, accumulate(spec, inputs[0], constants))
