"""Convolutions and dense layers as what they are to a per-channel scale: weights with an input and an output axis.

    y[o] = sum_i W[o, i] x[i]    =>    a * y + b = (a W) x + b        and        W (a * x + b) = (W a) x + W b

the second only where every tap of the kernel sees data: with padding, `W b` would differ at the border.

Covers conv2d (OIHW, any groups, so also depthwise), conv2d_transpose (IOHW, any groups) and matmul with the weight on
the right ([K, M]). Everything is computed in float64.
"""

from __future__ import annotations

import numpy as np
from tvm import relax

from tvm_int8.passes.dataflow import Expr, const_value, constant, dtype_of, op_name, shape_of

_KERNEL_LAYOUT = {"nn.conv2d": "OIHW", "nn.conv2d_transpose": "IOHW"}


def is_linear_layer(expr: Expr) -> bool:
    """Whether an expression is a layer whose output channels can be scaled through its weight operand."""
    name = op_name(expr)
    if name == "matmul":
        return len(shape_of(expr.args[1])) == 2 and len(shape_of(expr.args[0])) >= 2
    if name not in _KERNEL_LAYOUT:
        return False
    attrs = expr.attrs
    layouts = (attrs.data_layout, attrs.kernel_layout, attrs.out_layout or attrs.data_layout)
    return layouts == ("NCHW", _KERNEL_LAYOUT[name], "NCHW")


def channel_axis(expr: Expr) -> int:
    """Axis of the output channels in the result of a linear layer."""
    return len(shape_of(expr)) - 1 if op_name(expr) == "matmul" else 1


def bias_shapes(expr: Expr) -> list[tuple[int, ...]]:
    """Shapes a canonical bias constant of this layer may have, the preferred one first."""
    if op_name(expr) == "matmul":
        channels = shape_of(expr)[-1]
        return [(channels,), (1, channels)]
    return [(1, shape_of(expr)[1], 1, 1)]


def layer_weight(expr: Expr) -> np.ndarray | None:
    """Constant weight of a linear layer, or None (a variable, or a quantised constant behind a dequantize)."""
    return const_value(expr.args[1])


def with_weight(call: relax.Call, weight: np.ndarray) -> relax.Call:
    """The same layer with other weights, rounded to the dtype of the old ones."""
    operands = [call.args[0], constant(weight.astype(dtype_of(call.args[1]))), *call.args[2:]]
    return relax.Call(call.op, operands, call.attrs, call.ty_args)


def scale_outputs(call: relax.Call, weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Weight whose layer yields `scale * y`.

    Parameters
    ----------
    call : Call
        The layer.
    weight : ndarray
        Its weight, in the layout of the operator.
    scale : ndarray of float64, shape [OC]

    Returns
    -------
    ndarray of float64, the weight's shape
    """
    weight = weight.astype(np.float64)
    if op_name(call) == "matmul":
        return weight * scale
    if op_name(call) == "nn.conv2d":
        return weight * scale[:, None, None, None]
    groups = int(call.attrs.groups)
    ic, oc_per_group = weight.shape[:2]
    grouped = weight.reshape(groups, ic // groups, *weight.shape[1:])
    return (grouped * scale.reshape(groups, 1, oc_per_group, 1, 1)).reshape(weight.shape)


def scale_inputs(call: relax.Call, weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Weight whose layer yields `W (scale * x)`; `scale` is float64 [IC], the rest as in :func:`scale_outputs`."""
    weight = weight.astype(np.float64)
    if op_name(call) == "matmul":
        return weight * scale[:, None]
    if op_name(call) == "nn.conv2d_transpose":
        return weight * scale[:, None, None, None]
    groups = int(call.attrs.groups)
    oc, ic_per_group = weight.shape[:2]
    grouped = weight.reshape(groups, oc // groups, *weight.shape[1:])
    return (grouped * scale.reshape(groups, 1, ic_per_group, 1, 1)).reshape(weight.shape)


def response_to_shift(call: relax.Call, weight: np.ndarray, shift: np.ndarray) -> np.ndarray | None:
    """What adding `shift` (float64 [IC]) to the input adds to the outputs, [OC]; None if it varies within a channel."""
    if not shift.any():
        return np.zeros(shape_of(call)[channel_axis(call)])
    if op_name(call) == "nn.conv2d_transpose":
        return None
    if op_name(call) == "nn.conv2d" and any(int(pad) for pad in call.attrs.padding):
        return None
    moved = scale_inputs(call, weight, shift)
    return moved.sum(axis=0) if op_name(call) == "matmul" else moved.sum(axis=(1, 2, 3))
