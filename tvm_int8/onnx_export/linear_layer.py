"""A convolution or dense layer and its bias, as ONNX has it in one node.

    conv2d(x, w) -> add(b1) -> add(b2)                        Conv(x, w, b)
    conv2d(x[N, C, H, W], w[M, C, H, W]) -> reshape -> add    Gemm(Flatten(x), w, b)         (see DenseToConv2d)

Runtimes run a convolution in INT8 if its bias is int32, in steps of data scale times weight scale, and its result is
quantised behind nothing but a ReLU or a clip. There the bias is written as the integers that the compiled kernel adds;
elsewhere biases stay the float32 additions they are, because one sum of several would be rounded differently.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from tvm import relax

from tvm_int8.passes.anchors import LARGEST_BIAS
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.expressions import Expr, Var, const_value, dtype_of, op_name, shape_of
from tvm_int8.passes.quantization_parameters import quantization_of
from tvm_int8.passes.quantized_values import dequantized, quantized_weight


@dataclass
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
        [C]: float32, or int32 in steps of `bias_scale`.
    bias_scale : ndarray or None
        float32 [C] or [].
    """

    call: relax.Call
    result: Var
    absorbed: list[Var] = field(default_factory=list)
    is_dense: bool = False
    bias: np.ndarray | None = None
    bias_scale: np.ndarray | None = None


def linear_layer(flow: Dataflow, var: Var) -> LinearLayer:
    """The layer whose convolution is bound to `var`."""
    call = flow.value(var)
    followers = _followers(flow, var)
    last = followers[-1][0] if followers else var
    is_dense = any(bias is None for _, bias in followers)
    biases = [bias for _, bias in followers if bias is not None]
    step = _bias_step(flow, call)
    if biases and step is not None and (is_dense or _is_quantized_next(flow, last)):
        exact = np.rint(np.sum(biases, axis=0, dtype=np.float64) / step)
        scale = step.astype(np.float32)
        if np.abs(exact).max() <= LARGEST_BIAS and (scale >= np.finfo(np.float32).tiny).all():
            absorbed = [var for var, _ in followers]
            return LinearLayer(call, last, absorbed, is_dense, exact.astype(np.int32), scale)
    kept = followers[:2]
    if sum(bias is None for _, bias in kept) != 1:  # no dense layer, or one with several additions in front
        kept = followers[:1]
    bias = next((bias for _, bias in kept if bias is not None), None)
    is_dense = any(bias is None for _, bias in kept)
    return LinearLayer(call, kept[-1][0] if kept else var, [var for var, _ in kept], is_dense, bias)


def _followers(flow: Dataflow, var: Var) -> list[tuple[Var, np.ndarray | None]]:
    """(variable, bias [C]) of the additions behind a convolution; None for a dense layer's reshape."""
    found: list[tuple[Var, np.ndarray | None]] = []
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


def _bias_step(flow: Dataflow, call: relax.Call) -> np.ndarray | None:
    """Data scale times weight scale, float64 [O] or []; None where the convolution is not on such integers."""
    if op_name(call) != "nn.conv2d":
        return None
    data, weight = dequantized(flow, call.args[0]), quantized_weight(flow, call.args[1], 0)
    return None if data is None or weight is None else data.scale * weight[1].astype(np.float64)


def _is_quantized_next(flow: Dataflow, var: Var) -> bool:
    user = flow.only_consumer(var)
    if user is not None and op_name(user.value) in ("nn.relu", "clip"):
        user = flow.only_consumer(user.var)
    if user is None or op_name(user.value) != "quantize" or dtype_of(user.value) not in ("uint8", "int8"):
        return False
    return quantization_of(user.value) is not None
