"""Pooling and local response normalisation."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax

from tvm_int8.passes import lrn_op
from tvm_int8.passes.expressions import op_name, shape_of

from .registry import relax_op
from .writer import OnnxWriter


def _ints(values: Any) -> list[int]:
    return [int(value) for value in values]


@relax_op("nn.max_pool2d", "nn.max_pool3d")
def max_pool(out: OnnxWriter, call: relax.Call) -> None:
    """MaxPool."""
    out.emit("MaxPool", call.args[0], **_window(out, call))


@relax_op("nn.avg_pool2d", "nn.avg_pool3d")
def average_pool(out: OnnxWriter, call: relax.Call) -> None:
    """AveragePool."""
    counts_padding = bool(call.attrs.count_include_pad) and any(_ints(call.attrs.padding))
    out.emit("AveragePool", call.args[0], count_include_pad=int(counts_padding), **_window(out, call))


def _window(out: OnnxWriter, call: relax.Call) -> dict[str, Any]:
    """Attributes of a pool's window; rounding up becomes padding at the end, which no maximum and no mean sees."""
    attrs = call.attrs
    kernel, strides, dilations, pads = map(_ints, (attrs.pool_size, attrs.strides, attrs.dilation, attrs.padding))
    if not str(attrs.layout).startswith("NC"):
        raise out.error(f"has the layout {attrs.layout}", "channels in front of pixels", "convert the layout")
    if attrs.ceil_mode and op_name(call).startswith("nn.avg") and attrs.count_include_pad and any(pads):
        raise out.error("counts its padding and rounds its size up", "one or the other")
    rank = len(kernel)
    sizes = zip(shape_of(call.args[0])[2:], shape_of(call)[2:], kernel, strides, dilations, strict=True)
    for axis, (size, target, taps, stride, dilation) in enumerate(sizes):
        missing = (target - 1) * stride + (taps - 1) * dilation + 1 - (size + pads[axis] + pads[rank + axis])
        pads[rank + axis] += max(missing, 0)
    window = {"kernel_shape": kernel, "strides": strides, "pads": pads}
    return window if set(dilations) == {1} else {**window, "dilations": dilations}  # QLinearAveragePool knows none


@relax_op("nn.adaptive_avg_pool2d")
def adaptive_average_pool(out: OnnxWriter, call: relax.Call) -> None:
    """GlobalAveragePool; AveragePool where the output's size divides the input's."""
    sizes, targets = shape_of(call.args[0])[2:], shape_of(call)[2:]
    if targets == (1, 1):
        out.emit("GlobalAveragePool", call.args[0])
        return
    if any(size % target for size, target in zip(sizes, targets, strict=True)):
        raise out.error(f"pools {list(sizes)} to {list(targets)}", "windows of one size")
    kernel = [size // target for size, target in zip(sizes, targets, strict=True)]
    out.emit("AveragePool", call.args[0], kernel_shape=kernel, strides=kernel)


@relax_op(lrn_op.NAME)
def local_response_normalisation(out: OnnxWriter, call: relax.Call) -> None:
    """LRN; windows that are even or not centred, which ONNX Runtime's does not know, as arithmetic."""
    size, before = int(call.attrs["size"]), int(call.attrs["before"])
    alpha, beta, bias = (float(call.attrs[name]) for name in ("alpha", "beta", "bias"))
    if size % 2 and before == size // 2:
        out.emit("LRN", call.args[0], size=size, alpha=alpha, beta=beta, bias=bias)
        return
    scaled = out.emit(
        "Mul", _mean_square(out, call.args[0], size, before), _number(out, alpha, "alpha"), suffix="alpha"
    )
    base = out.emit("Add", scaled, _number(out, bias, "bias"), suffix="base")
    out.emit("Div", call.args[0], out.emit("Pow", base, _number(out, beta, "beta"), suffix="divisor"))


def _mean_square(out: OnnxWriter, data: relax.Expr, size: int, before: int) -> str:
    """Means over windows of channels, which a pool takes as the rows of an image."""
    n, channels, height, width = shape_of(data)
    square = out.emit("Mul", data, data, suffix="square")
    rows = out.emit("Reshape", square, _shape(out, (n, 1, channels, height * width)), suffix="rows")
    window: dict[str, Any] = {
        "kernel_shape": [size, 1],
        "pads": [before, 0, size - 1 - before, 0],
        "count_include_pad": 1,
    }
    means = out.emit("AveragePool", rows, suffix="means", **window)
    return out.emit("Reshape", means, _shape(out, (n, channels, height, width)), suffix="mean_square")


def _shape(out: OnnxWriter, shape: tuple[int, ...]) -> str:
    return out.constant(np.asarray(shape, np.int64), "shape")


def _number(out: OnnxWriter, value: float, role: str) -> str:
    return out.constant(np.float32(value), role)
