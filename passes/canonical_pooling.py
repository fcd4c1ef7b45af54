"""Canonicalize's rules for windows: global average pooling, and padding that belongs to a convolution or a pool."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax

from tvm_int8.passes.canonical_shapes import Rule
from tvm_int8.passes.dataflow import Expr, Rebuilder, const_value, constant, is_float, op_name, shape_of

_SPATIAL = {2, 3}  # H and W of NCHW


def _ints(values: Any) -> list[int]:
    return [int(value) for value in values]


def _reduced_axes(call: relax.Call) -> set[int]:
    rank = len(shape_of(call.args[0]))
    return set(range(rank)) if call.attrs.axis is None else {axis % rank for axis in _ints(call.attrs.axis)}


def _mean(call: relax.Call, new: Rebuilder) -> Expr | None:
    """Mean over H and W, at once or one after the other."""
    data, axes = call.args[0], _reduced_axes(call)
    inner = new.value(data)
    if op_name(inner) == "mean":
        first = _reduced_axes(inner)
        kept = [axis for axis in range(len(shape_of(inner.args[0]))) if inner.attrs.keepdims or axis not in first]
        data, axes = inner.args[0], first | {kept[axis] for axis in axes}
    if axes != _SPATIAL or len(shape_of(data)) != 4 or not is_float(data):
        return None
    pooled = relax.op.nn.adaptive_avg_pool2d(data, (1, 1))
    return pooled if len(shape_of(call)) == 4 else relax.op.reshape(pooled, shape_of(call))


def _avg_pool2d(call: relax.Call, new: Rebuilder) -> Expr | None:
    attrs, data = call.attrs, call.args[0]
    if attrs.layout != "NCHW" or (attrs.out_layout or "NCHW") != "NCHW":
        return None
    whole = tuple(_ints(attrs.pool_size)) == shape_of(data)[2:] and set(_ints(attrs.dilation)) == {1}
    if whole and not any(_ints(attrs.padding)):
        return relax.op.nn.adaptive_avg_pool2d(data, (1, 1))
    if not attrs.count_include_pad or attrs.ceil_mode:
        return None
    data, padding = _without_pad(data, _ints(attrs.padding), new)
    if padding == _ints(attrs.padding):
        return None
    return relax.op.nn.avg_pool2d(
        data, attrs.pool_size, attrs.strides, padding, attrs.dilation, attrs.ceil_mode, attrs.count_include_pad
    )


def _without_pad(data: Expr, padding: list[int], new: Rebuilder) -> tuple[Expr, list[int]]:
    """What is in front of a window's zero `nn.pad`s, and its [top, left, bottom, right] including theirs."""
    while (widths := _zero_pad(new.value(data))) is not None:
        data, padding = new.value(data).args[0], [own + extra for own, extra in zip(padding, widths, strict=True)]
    return data, padding


def _zero_pad(expr: Expr) -> list[int] | None:
    """[top, left, bottom, right] of an `nn.pad` that surrounds H and W with zeros, else None."""
    if op_name(expr) != "nn.pad" or expr.attrs.pad_mode != "constant" or float(expr.attrs.pad_value) != 0:
        return None
    widths = _ints(expr.attrs.pad_width)
    if len(widths) != 8 or any(widths[:4]) or min(widths) < 0:
        return None
    top, bottom, left, right = widths[4:]
    return [top, left, bottom, right]


def _conv2d(call: relax.Call, new: Rebuilder) -> Expr | None:
    """Zero padding in front becomes the convolution's own; a constant weight in another layout becomes OIHW."""
    attrs, (data, weight) = call.attrs, call.args
    if attrs.data_layout != "NCHW":
        return None
    padding, layout = _ints(attrs.padding), str(attrs.kernel_layout)
    data, padding = _without_pad(data, padding, new)
    value = const_value(weight)
    if layout != "OIHW" and value is not None and sorted(layout) == sorted("OIHW"):
        weight, layout = constant(np.transpose(value, [layout.index(dim) for dim in "OIHW"])), "OIHW"
    if padding == _ints(attrs.padding) and layout == attrs.kernel_layout:
        return None
    return relax.op.nn.conv2d(
        data,
        weight,
        strides=attrs.strides,
        padding=padding,
        dilation=attrs.dilation,
        groups=attrs.groups,
        data_layout=attrs.data_layout,
        kernel_layout=layout,
        out_layout=attrs.out_layout,
        out_dtype=attrs.out_dtype,
    )


RULES: dict[str, Rule] = {"mean": _mean, "nn.avg_pool2d": _avg_pool2d, "nn.conv2d": _conv2d}
