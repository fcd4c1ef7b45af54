"""Activation functions; the frontend's arithmetic for HardSigmoid and HardSwish becomes these operators again."""

from __future__ import annotations

import math

import numpy as np
from tvm import relax

from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.expressions import Expr, const_value, dtype_of, op_name, shape_of

from .registry import relax_op
from .writer import OnnxWriter

_BOUNDS = ("min", "max")

for _name, _op_type in {"sigmoid": "Sigmoid", "tanh": "Tanh", "nn.softplus": "Softplus"}.items():

    @relax_op(_name)
    def _unary(out: OnnxWriter, call: relax.Call, op_type: str = _op_type) -> None:
        out.emit(op_type, call.args[0])


@relax_op("nn.relu")
def relu(out: OnnxWriter, call: relax.Call) -> None:
    """Relu."""
    if _is_between_pairs(out, call):
        out.emit("Max", call.args[0], _bound(out, call, 0.0, "min"))
    else:
        out.emit("Relu", call.args[0])


def _is_between_pairs(out: OnnxWriter, call: relax.Call) -> bool:
    """Whether a clamp stands alone on integers. OpenVINO 2026.4 drops such a Relu or Clip and crashes on the pairs."""
    reader = out.flow.only_consumer(out.var)
    reads_integers = op_name(out.flow.value(call.args[0])) == "dequantize"
    return reads_integers and reader is not None and op_name(reader.value) == "quantize"


def _bound(out: OnnxWriter, call: relax.Call, value: float, role: str) -> str | None:
    return None if math.isinf(value) else out.constant(np.asarray(value, dtype_of(call)), role)


@relax_op("nn.leakyrelu")
def leaky_relu(out: OnnxWriter, call: relax.Call) -> None:
    """LeakyRelu."""
    out.emit("LeakyRelu", call.args[0], alpha=float(call.attrs.alpha))


@relax_op("nn.prelu")
def prelu(out: OnnxWriter, call: relax.Call) -> None:
    """PRelu; the slopes [C] stand along the channels."""
    slope, rank = const_value(call.args[1]), len(shape_of(call))
    axis = int(call.attrs.axis) % rank
    if slope is None:
        raise out.error("its slope is computed from the data", "a constant slope")
    out.emit("PRelu", call.args[0], out.constant(slope.reshape(-1, *[1] * (rank - 1 - axis)), "slope"))


@relax_op("nn.silu")
def silu(out: OnnxWriter, call: relax.Call) -> None:
    """x * sigmoid(x)."""
    out.emit("Mul", call.args[0], out.emit("Sigmoid", call.args[0], suffix="gate"))


@relax_op("nn.gelu")
def gelu(out: OnnxWriter, call: relax.Call) -> None:
    """Gelu."""
    out.emit("Gelu", call.args[0])


@relax_op("nn.gelu_tanh")
def gelu_tanh(out: OnnxWriter, call: relax.Call) -> None:
    """Gelu by its tanh formula."""
    out.emit("Gelu", call.args[0], approximate="tanh")


@relax_op("nn.softmax")
def softmax(out: OnnxWriter, call: relax.Call) -> None:
    """Softmax."""
    out.emit("Softmax", call.args[0], axis=int(call.attrs.axis))


@relax_op("nn.log_softmax")
def log_softmax(out: OnnxWriter, call: relax.Call) -> None:
    """LogSoftmax."""
    out.emit("LogSoftmax", call.args[0], axis=int(call.attrs.axis))


@relax_op("clip")
def clip(out: OnnxWriter, call: relax.Call) -> None:
    """Clip, or the HardSigmoid that it ends."""
    hard = _hard_sigmoid(out.flow, call)
    if hard is not None:
        data, alpha, beta = hard
        out.emit("HardSigmoid", data, alpha=alpha, beta=beta)
        return
    low, high = (_bound(out, call, float(arg.value), role) for arg, role in zip(call.args[1:], _BOUNDS, strict=True))
    if _is_between_pairs(out, call) and low is not None and high is not None:
        out.emit("Min", out.emit("Max", call.args[0], low, suffix="max"), high)
    else:
        out.emit("Clip", call.args[0], low, high)


def _hard_sigmoid(flow: Dataflow, call: Expr) -> tuple[Expr, float, float] | None:
    """(x, alpha, beta) of clip(alpha * x + beta, 0, 1)."""
    if op_name(call) != "clip" or (float(call.args[1].value), float(call.args[2].value)) != (0.0, 1.0):
        return None
    shifted = flow.value(call.args[0])
    beta = _number(shifted, "add")
    scaled = flow.value(shifted.args[0]) if beta is not None else shifted
    alpha = _number(scaled, "multiply")
    return None if alpha is None or beta is None else (scaled.args[0], alpha, beta)


def _number(call: Expr, name: str) -> float | None:
    """The float32 scalar that an operator `name` combines its data with."""
    value = const_value(call.args[1]) if op_name(call) == name else None
    return float(value) if value is not None and value.ndim == 0 and value.dtype == np.float32 else None


@relax_op("multiply")
def multiply(out: OnnxWriter, call: relax.Call) -> None:
    """Mul, or the HardSwish that it ends."""
    for data, gate in (call.args, reversed(call.args)):
        hard = _hard_sigmoid(out.flow, out.flow.value(gate))
        if hard is not None and hard[0] == data and hard[1:] == (float(np.float32(1 / 6)), 0.5):
            out.emit("HardSwish", data)
            return
    out.emit("Mul", *call.args)
