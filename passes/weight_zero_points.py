"""Weights with zero points, as models quantised elsewhere have them: int8 kernels, and one on sums of the data.

    sum (x - zx) (w - zw)   =   sum (x - zx) w   -   zw * sum (x - zx)

The first sum is the convolution as kernels know it. The second needs the data's sum over each window: a convolution
with ones, whose single channel (one per output channel where there are groups) the epilogue multiplies by zw.  Zero
points that leave int8 weights int8 are subtracted from these instead, at no cost.

Method     Jacob et al. 2018 (arXiv:1712.05877), equation 7.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tvm_int8.kernel_op import kernel_call
from tvm_int8.specs import Conv2d, Operand, Output, Program, Tensor

from .convolution_weights import of_zeros
from .dataflow import Dataflow
from .epilogue_expression import Node, apply, channel, tensor
from .expressions import Expr, const_value, op_name

ACCUMULATOR = Program((Operand("acc", "int32"),), (("add", "%0", 0.0),))


@dataclass(frozen=True)
class IntegerWeight:
    """real = scale * (values - zero_point): int8 values, float32 scale and int64 zero point, each [] or [out]."""

    values: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray


def integer_weight(flow: Dataflow, expr: Expr, out_axis: int) -> IntegerWeight | None:
    """A dequantize of int8 constants with scales and zero points per output channel or for all; None for others."""
    value = flow.value(expr)
    if op_name(value) != "dequantize":
        return None
    values, scale, zero_point = (const_value(arg) for arg in value.args)
    if values is None or values.dtype != np.int8 or scale is None or zero_point is None:
        return None
    by_channel, channels = int(value.attrs.axis) % values.ndim == out_axis, values.shape[out_axis]
    if any(array.size > 1 and not (by_channel and array.size == channels) for array in (scale, zero_point)):
        return None
    scale, zero_point = (array.reshape(-1) if array.size > 1 else array.reshape(()) for array in (scale, zero_point))
    return _centred(IntegerWeight(values, scale.astype(np.float32), zero_point.astype(np.int64)), out_axis)


def _centred(weight: IntegerWeight, out_axis: int) -> IntegerWeight:
    """The same weight with a zero point of 0, if the values stay int8."""
    spread = [-1 if axis == out_axis else 1 for axis in range(weight.values.ndim)] if weight.zero_point.ndim else []
    centred = weight.values.astype(np.int64) - weight.zero_point.reshape(spread)
    if not weight.zero_point.any() or centred.min() < -128 or centred.max() > 127:
        return weight
    return replace(weight, values=centred.astype(np.int8), zero_point=np.zeros((), np.int64))


def zero_point_term(order, geometry: Conv2d, factor: np.ndarray, data_zero_point, pad: list) -> Node:
    """factor [O] times the data's sums over the windows of a convolution; orders the kernel that computes these.

    Parameters
    ----------
    order : KernelOrder
        Of the convolution, its data registered.
    geometry : Conv2d
        The convolution from the data alone.
    factor : ndarray of float64 [O]
        Scales times zero points of the weights.
    data_zero_point : number or ndarray [C]
    pad : list
        The constant "pad", where each channel of the data has its own.
    """
    (data,), (n, channels, height, width), groups = geometry.inputs, geometry.result.shape, geometry.groups
    outputs = channels if groups > 1 else 1
    shape = (data.shape[1], outputs // groups) if geometry.transposed else (outputs, data.shape[1] // groups)
    ones = np.ones((*shape, *geometry.kernel), np.int8)
    bias = -of_zeros(ones, geometry.transposed, groups, data_zero_point)
    sums = Tensor((n, outputs, height, width), "float32", 0)
    spec = replace(geometry, result=sums, program=ACCUMULATOR, output=Output("float32"))
    constants, name = [("weight", ones), ("bias", bias.astype(np.int32)), *pad], f"{order.exit.name}_sums"
    order.inputs.append(order.new.emit(kernel_call(spec, [order.inputs[0]], constants, name, sums.shape), name))
    order.tensors.append(sums)
    operand = tensor(len(order.inputs) - 1, Operand("tensor" if groups > 1 else "map"))
    return apply("mul", operand, channel(factor))
