"""A convolution or dense layer with its weight and bias, as ONNX has it in one node.

    conv2d(x, w) -> add(b1) -> add(b2)                        Conv(x, w, b)
    conv2d(x[N, C, H, W], w[M, C, H, W]) -> reshape -> add    Gemm(Flatten(x), w, b)         (see DenseToConv2d)

Other runtimes compute in INT8 if the bias is int32, in steps of data scale times weight scale. It is written as the
integers that the compiled kernel adds. Where that kernel adds more than the bias before it rounds, and in float layers,
biases stay the float32 additions they are, because one sum of several would be rounded differently.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from tvm import relax

from tvm_int8.passes.anchors import LARGEST_BIAS
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.expressions import Expr, Var, const_value, op_name, shape_of
from tvm_int8.passes.quantized_values import dequantized, dequantized_by_channel, quantized_weight

Followers = list[tuple[Var, "np.ndarray | None"]]


@dataclass(frozen=True)
class Integers:
    """Weight and bias of a layer that computes on integers.

    Attributes
    ----------
    weight, bias : ndarray
        int8 [O, ...] and int32 [O].
    weight_scale, bias_scale : ndarray
        float32 [O] or [].
    """

    weight: np.ndarray
    weight_scale: np.ndarray
    bias: np.ndarray
    bias_scale: np.ndarray


@dataclass(frozen=True)
class LinearLayer:
    """What becomes one node.

    Attributes
    ----------
    call : relax.Call
        The convolution.
    result : Var
        What the node delivers.
    absorbed : list of Var
        The bindings behind the convolution that the node computes, `result` included.
    is_dense : bool
        Whether it is a dense layer, whose result has two axes.
    bias : ndarray or None
        float32 [O].
    integers : Integers or None
        What stands in place of weight and bias if both are integers.
    """

    call: relax.Call
    result: Var
    absorbed: list[Var] = field(default_factory=list)
    is_dense: bool = False
    bias: np.ndarray | None = None
    integers: Integers | None = None


def linear_layer(flow: Dataflow, var: Var) -> LinearLayer:
    """The layer whose convolution is bound to `var`."""
    call, followers = flow.value(var), _followers(flow, var)
    whole = _layer(call, var, followers)
    if _is_rounded_alone(flow, whole.result):
        biases = [np.zeros(shape_of(call)[1]), *(bias for _, bias in followers if bias is not None)]
        integers = _integers(flow, call, np.stack(biases).astype(np.float64).sum(0))
        if integers is not None:
            return replace(whole, bias=None, integers=integers)
    one_each = sum(bias is None for _, bias in followers[:2]) == 1  # a reshape and an addition, in any order
    return _layer(call, var, followers[: 2 if one_each else 1])


def _layer(call: relax.Call, var: Var, followers: Followers) -> LinearLayer:
    absorbed = [var for var, _ in followers]
    bias = next((bias for _, bias in followers if bias is not None), None)
    return LinearLayer(call, [var, *absorbed][-1], absorbed, any(bias is None for _, bias in followers), bias)


def _followers(flow: Dataflow, var: Var) -> Followers:
    """(variable, bias [O]) of the additions behind a convolution; None for a dense layer's reshape."""
    found: Followers = []
    may_flatten = _covers_its_map(flow.value(var))
    while (user := flow.only_consumer(var)) is not None:
        bias = _bias(user.value, var)
        if bias is None:
            flattens = op_name(user.value) == "reshape" and len(shape_of(user.value)) == 2
            if not (may_flatten and flattens):
                break
            may_flatten = False
        var = user.var
        found.append((var, bias))
    return found


def _bias(call: Expr, var: Var) -> np.ndarray | None:
    """The constant per channel that `call` adds to `var`."""
    value = const_value(call.args[1]) if op_name(call) == "add" and call.args[0] == var else None
    shape = shape_of(call)
    if value is None or value.dtype != np.float32 or shape != shape_of(var):
        return None
    aligned = (1,) * (len(shape) - value.ndim) + value.shape
    return value.reshape(-1) if aligned == (1, shape[1], *(1,) * (len(shape) - 2)) else None


def _covers_its_map(call: relax.Call) -> bool:
    """Whether the kernel of a convolution without groups is as large as its data, so that it has one position."""
    if op_name(call) != "nn.conv2d" or int(call.attrs.groups) != 1 or any(int(p) for p in call.attrs.padding):
        return False
    return shape_of(call.args[0])[2:] == shape_of(call.args[1])[2:] and {int(d) for d in call.attrs.dilation} == {1}


def _is_rounded_alone(flow: Dataflow, var: Var) -> bool:
    """Whether the kernel that computes `var` rounds the bias behind it to integers as it is.

    Not where the zero points of a second tensor's channels join the bias, or one of several readers adds a constant.
    """
    readers = [user.value for user in flow.consumers[var] if op_name(user.value) in ("add", "subtract")]
    operands = [operand for call in readers for operand in call.args if operand != var]
    constants = sum(const_value(operand) is not None for operand in operands)
    by_channel = any(dequantized_by_channel(flow, operand) is not None for operand in operands)
    return not by_channel and (constants == 0 or len(flow.consumers[var]) == 1)


def _integers(flow: Dataflow, call: relax.Call, bias: np.ndarray) -> Integers | None:
    """Integer weight and bias of a convolution whose data have one scale; None for any other."""
    data = dequantized(flow, call.args[0])
    weight = quantized_weight(flow, call.args[1], 0) if op_name(call) == "nn.conv2d" else None
    if data is None or weight is None:
        return None
    values, scale = weight
    if np.abs(bias / (data.scale * scale.astype(np.float64))).max() > LARGEST_BIAS:
        if not scale.ndim:
            return None
        values, scale = _coarser(values, scale, np.abs(bias) / (data.scale * LARGEST_BIAS))
    step = data.scale * scale.astype(np.float64)
    if (step < np.finfo(np.float32).tiny).any():
        return None
    return Integers(values, scale, np.rint(bias / step).astype(np.int32), step.astype(np.float32))


def _coarser(values: np.ndarray, scale: np.ndarray, least: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The weight with scales of at least `least`: dead channels' weights, 1e-30 beside a bias of 1, become zero."""
    wanted = np.maximum(scale, np.nextafter(least.astype(np.float32), np.float32(np.inf)))
    ratio = (scale.astype(np.float64) / wanted).reshape(-1, *[1] * (values.ndim - 1))
    return np.rint(values * ratio).astype(np.int8), wanted
