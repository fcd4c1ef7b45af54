"""A convolution's weights seen from its input channels."""

from __future__ import annotations

import numpy as np
from tvm import relax

from .expressions import const_value, op_name, shape_of


def is_depthwise(call: relax.Call) -> bool:
    """Whether every output channel reads its own input channel and no other."""
    if op_name(call) != "nn.conv2d":
        return False
    return int(call.attrs.groups) == shape_of(call.args[0])[1] == shape_of(call)[1]


def incoming_weights(call: relax.Call) -> np.ndarray:
    """[C, outputs that read channel c, KH * KW]."""
    weight, groups = const_value(call.args[1]), int(call.attrs.groups)
    if op_name(call) == "nn.conv2d_transpose":
        return weight.reshape(*weight.shape[:2], -1)
    out, in_group = weight.shape[:2]
    grouped = weight.reshape(groups, out // groups, in_group, -1).transpose(0, 2, 1, 3)
    return grouped.reshape(groups * in_group, out // groups, -1)


def scaled_inputs(call: relax.Call, factor: np.ndarray) -> np.ndarray:
    """The float32 weight, as it lies, of a convolution whose input channel c was divided by factor[c]."""
    weight, groups = const_value(call.args[1]).astype(np.float64), int(call.attrs.groups)
    if op_name(call) == "nn.conv2d_transpose":
        return (weight * factor.reshape(-1, 1, 1, 1)).astype(np.float32)
    per_group = factor.reshape(groups, 1, weight.shape[1], 1, 1)
    return (weight.reshape(groups, -1, *weight.shape[1:]) * per_group).reshape(weight.shape).astype(np.float32)


def of_zeros(weight: np.ndarray, transposed: bool, groups: int, zero_point) -> np.ndarray:
    """What each output channel's weights make of data that is real zero everywhere, int64 [O]."""
    sums = weight.astype(np.int64).sum((2, 3))
    inputs = weight.shape[0] if transposed else weight.shape[1] * groups
    zeros = np.broadcast_to(np.asarray(zero_point, np.int64), inputs).reshape(groups, -1)
    if transposed:
        return np.einsum("gc,gco->go", zeros, sums.reshape(groups, -1, weight.shape[1])).ravel()
    return np.einsum("gc,goc->go", zeros, sums.reshape(groups, -1, weight.shape[1])).ravel()
