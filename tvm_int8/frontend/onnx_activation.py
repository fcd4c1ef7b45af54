"""Activation functions."""

from __future__ import annotations

import math

import numpy as np
from tvm import relax
from tvm.relax import op

from .onnx_registry import MICROSOFT, Node, onnx_op
from .values import Value


def _register_unary(op_type: str, apply) -> None:
    @onnx_op(op_type)
    def handler(ctx, node: Node, x: Value) -> relax.Var:
        return ctx.emit(apply(ctx.expr(x)))


for _name, _apply in {
    "Relu": op.nn.relu,
    "Sigmoid": op.sigmoid,
    "Tanh": op.tanh,
    "Softplus": op.nn.softplus,
}.items():
    _register_unary(_name, _apply)


@onnx_op("LeakyRelu")
def leaky_relu(ctx, node: Node, x: Value) -> relax.Var:
    """LeakyRelu."""
    return ctx.emit(op.nn.leakyrelu(ctx.expr(x), float(node.get("alpha", 0.01))))


@onnx_op("PRelu")
def prelu(ctx, node: Node, x: Value, slope: Value) -> relax.Var:
    """PRelu: a leakyrelu for one slope, nn.prelu for one per channel, arithmetic for any other shape."""
    x, shape = ctx.expr(x), ctx.shape(x)
    if not isinstance(slope, relax.Var):
        slope = ctx.static(node, slope, "slope")
        if slope.size == 1:
            return ctx.emit(op.nn.leakyrelu(x, float(slope.reshape(()))))
        if _is_per_channel(node, slope.shape, shape):
            return ctx.emit(op.nn.prelu(x, ctx.expr(slope.reshape(-1)), 1))
    zero = ctx.scalar(0.0)
    return ctx.emit(op.add(op.nn.relu(x), op.multiply(ctx.expr(slope), op.minimum(x, zero))))


def _is_per_channel(node: Node, slope: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    if len(shape) < 2:
        return False
    if node.opset < 7 and slope == (shape[1],):
        return True
    aligned = (1,) * (len(shape) - len(slope)) + tuple(slope)
    return aligned == (1, shape[1], *(1,) * (len(shape) - 2))


def _exponential_part(ctx, x, alpha: float, inner: float = 1.0) -> relax.Expr:
    """``alpha * (exp(min(x, 0) * inner) - 1)``."""
    negative = op.minimum(x, ctx.scalar(0.0))
    negative = negative if inner == 1.0 else op.multiply(negative, ctx.scalar(inner))
    less_one = op.subtract(op.exp(negative), ctx.scalar(1.0))
    return less_one if alpha == 1.0 else op.multiply(less_one, ctx.scalar(alpha))


@onnx_op("Elu")
def elu(ctx, node: Node, x: Value) -> relax.Var:
    """Elu, as ``relu(x) + alpha * (exp(min(x, 0)) - 1)``."""
    x = ctx.expr(x)
    return ctx.emit(op.add(op.nn.relu(x), _exponential_part(ctx, x, float(node.get("alpha", 1.0)))))


@onnx_op("Celu")
def celu(ctx, node: Node, x: Value) -> relax.Var:
    """Celu."""
    x, alpha = ctx.expr(x), float(node.get("alpha", 1.0))
    return ctx.emit(op.add(op.nn.relu(x), _exponential_part(ctx, x, alpha, 1.0 / alpha)))


@onnx_op("Selu")
def selu(ctx, node: Node, x: Value) -> relax.Var:
    """Selu."""
    x = ctx.expr(x)
    alpha, gamma = float(node.get("alpha", 1.6732632)), float(node.get("gamma", 1.0507010))
    positive = op.multiply(op.nn.relu(x), ctx.scalar(gamma))
    return ctx.emit(op.add(positive, _exponential_part(ctx, x, alpha * gamma)))


@onnx_op("HardSigmoid")
def hard_sigmoid(ctx, node: Node, x: Value) -> relax.Var:
    """HardSigmoid: ``clip(alpha * x + beta, 0, 1)``."""
    return _hard_sigmoid(ctx, ctx.expr(x), float(node.get("alpha", 0.2)), float(node.get("beta", 0.5)))


def _hard_sigmoid(ctx, x, alpha: float, beta: float, suffix: str = "") -> relax.Var:
    line = op.add(op.multiply(x, ctx.scalar(alpha)), ctx.scalar(beta))
    return ctx.emit(op.clip(line, 0.0, 1.0), suffix)


@onnx_op("HardSwish")
def hard_swish(ctx, node: Node, x: Value) -> relax.Var:
    """HardSwish: ``x * clip(x / 6 + 0.5, 0, 1)``."""
    x = ctx.expr(x)
    return ctx.emit(op.multiply(x, _hard_sigmoid(ctx, x, 1.0 / 6.0, 0.5, "gate")))


@onnx_op("Mish")
def mish(ctx, node: Node, x: Value) -> relax.Var:
    """Mish: ``x * tanh(softplus(x))``."""
    x = ctx.expr(x)
    return ctx.emit(op.multiply(x, op.tanh(op.nn.softplus(x))))


@onnx_op("Swish")
@onnx_op("QuickGelu", domain=MICROSOFT)
def swish(ctx, node: Node, x: Value) -> relax.Var:
    """``x * sigmoid(alpha * x)``."""
    x, alpha = ctx.expr(x), float(node.get("alpha", 1.702 if node.domain else 1.0))
    if alpha == 1.0:
        return ctx.emit(op.nn.silu(x))
    return ctx.emit(op.multiply(x, op.sigmoid(op.multiply(x, ctx.scalar(alpha)))))


@onnx_op("Gelu")
@onnx_op("Gelu", domain=MICROSOFT)
def gelu(ctx, node: Node, x: Value) -> relax.Var:
    """Gelu, exact or with the tanh approximation."""
    apply = op.nn.gelu_tanh if node.get("approximate", "none") == "tanh" else op.nn.gelu
    return ctx.emit(apply(ctx.expr(x)))


@onnx_op("Softsign")
def softsign(ctx, node: Node, x: Value) -> relax.Var:
    """``x / (1 + |x|)``."""
    x = ctx.expr(x)
    return ctx.emit(op.divide(x, op.add(op.abs(x), ctx.scalar(1.0))))


@onnx_op("Clip")
def clip(ctx, node: Node, x: Value, low: Value | None = None, high: Value | None = None) -> relax.Var:
    """Clip with bounds as attributes (opset < 11) or inputs; ``clip(x, 0, inf)`` is a relu."""
    if isinstance(low, relax.Var) or isinstance(high, relax.Var):
        out = ctx.expr(x)
        out = out if low is None else op.maximum(out, ctx.expr(low))
        return ctx.emit(out if high is None else op.minimum(out, ctx.expr(high)))
    low = _bound(node, "min", low, -math.inf)
    high = _bound(node, "max", high, math.inf)
    largest = float(np.finfo(np.float32).max)
    return clip_between(ctx, x, -math.inf if low <= -largest else low, math.inf if high >= largest else high)


def _bound(node: Node, name: str, given, missing: float) -> float:
    return float(node.get(name, missing)) if given is None else float(np.asarray(given).reshape(()))


def clip_between(ctx, x: Value, low: float, high: float) -> relax.Var | Value:
    """The simplest operator that clips to [low, high]."""
    if low == -math.inf and high == math.inf:
        return x
    is_float = ctx.dtype(x) == "float32"
    if low == 0.0 and high == math.inf and is_float:
        return ctx.emit(op.nn.relu(ctx.expr(x)))
    if low == -math.inf or high == math.inf:
        apply, bound = (op.minimum, high) if low == -math.inf else (op.maximum, low)
        return ctx.emit(apply(ctx.expr(x), ctx.expr(np.asarray(bound, ctx.dtype(x)))))
    return ctx.emit(op.clip(ctx.expr(x), low if is_float else int(low), high if is_float else int(high)))


@onnx_op("Softmax")
def softmax(ctx, node: Node, x: Value) -> relax.Var:
    """Softmax; before opset 13 over everything from `axis` on."""
    return _over_axis(ctx, node, x, op.nn.softmax)


@onnx_op("LogSoftmax")
def log_softmax(ctx, node: Node, x: Value) -> relax.Var:
    """LogSoftmax; before opset 13 over everything from `axis` on."""
    return _over_axis(ctx, node, x, op.nn.log_softmax)


def _over_axis(ctx, node: Node, x: Value, apply) -> relax.Var:
    shape, x = ctx.shape(x), ctx.expr(x)
    axis = node.axis(len(shape), -1 if node.opset >= 13 else 1)
    if node.opset >= 13 or math.prod(shape[axis + 1 :]) == 1:
        return ctx.emit(apply(x, axis))
    flat = ctx.emit(op.reshape(x, (math.prod(shape[:axis]), math.prod(shape[axis:]))), "flat")
    return ctx.emit(op.reshape(ctx.emit(apply(flat, 1)), shape), "unflat")


def apply_activation(ctx, node: Node, x: relax.Var, name: str, parameters: list[float]) -> relax.Var:
    """The activation ONNX Runtime has fused into a node."""
    if not name:
        return x
    if name == "Clip":
        return clip_between(ctx, x, *parameters)
    if name == "LeakyRelu":
        return ctx.emit(op.nn.leakyrelu(x, *parameters), "activation")
    if name == "HardSigmoid":
        return _hard_sigmoid(ctx, x, parameters[0], parameters[1], "activation")
    simple = {"Relu": op.nn.relu, "Sigmoid": op.sigmoid, "Tanh": op.tanh}.get(name)
    if simple is None:
        raise node.error(f"has the activation '{name}'", "Relu, LeakyRelu, Clip, Sigmoid, Tanh or HardSigmoid")
    return ctx.emit(simple(x), "activation")
