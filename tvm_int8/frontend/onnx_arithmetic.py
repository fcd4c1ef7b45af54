"""Element-wise arithmetic, comparisons, n-ary sums and type conversion."""

from __future__ import annotations

import numpy as np
from tvm import relax
from tvm.relax import op

from .onnx_fold import cast_dtype
from .onnx_registry import Node, onnx_op
from .values import IntegerValued, Value

_UNARY = {
    "Abs": op.abs,
    "Neg": op.negative,
    "Exp": op.exp,
    "Log": op.log,
    "Sqrt": op.sqrt,
    "Erf": op.erf,
    "Floor": op.floor,
    "Ceil": op.ceil,
    "Sign": op.sign,
    "Sin": op.sin,
    "Cos": op.cos,
    "Not": op.logical_not,
}
_BINARY = {
    "Add": op.add,
    "Sub": op.subtract,
    "Mul": op.multiply,
    "Pow": op.power,
    "Equal": op.equal,
    "Less": op.less,
    "LessOrEqual": op.less_equal,
    "Greater": op.greater,
    "GreaterOrEqual": op.greater_equal,
    "And": op.logical_and,
    "Or": op.logical_or,
}


@onnx_op(*_UNARY)
def unary(ctx, node: Node, x: Value) -> relax.Var:
    """A function of one tensor."""
    return ctx.emit(_UNARY[node.op_type](ctx.expr(x)))


@onnx_op("Reciprocal")
def reciprocal(ctx, node: Node, x: Value) -> relax.Var:
    """``1 / x``."""
    return ctx.emit(op.divide(ctx.scalar(1.0), ctx.expr(x)))


def _aligned(ctx, node: Node, a: Value, b: Value) -> Value:
    """The second operand of an opset < 7 node, which may be broadcast from an axis other than the last."""
    axis = node.get("axis")
    if node.opset >= 7 or not node.get("broadcast", 0) or axis is None:
        return b
    shape = ctx.shape(b)
    trailing = len(ctx.shape(a)) - axis % len(ctx.shape(a)) - len(shape)
    shape = (*shape, *(1,) * trailing)
    return b.reshape(shape) if isinstance(b, np.ndarray) else ctx.emit(op.reshape(ctx.expr(b), shape), "aligned")


def _require_broadcast(ctx, node: Node, *operands: Value) -> None:
    shapes = [ctx.shape(operand) for operand in operands]
    try:
        np.broadcast_shapes(*shapes)
    except ValueError as error:
        listed = " and ".join(str(list(shape)) for shape in shapes)
        raise node.error(
            f"has operands of shape {listed}", "shapes that broadcast", "check the input shapes"
        ) from error


@onnx_op(*_BINARY)
def binary(ctx, node: Node, a: Value, b: Value) -> relax.Var:
    """A function of two tensors, broadcast like NumPy's; ``x * sigmoid(x)`` is written as silu."""
    b = _aligned(ctx, node, a, b)
    _require_broadcast(ctx, node, a, b)
    if node.op_type in ("Add", "Mul") and isinstance(a, np.ndarray):
        a, b = b, a  # constants come second
    if node.op_type == "Mul":
        for x, gate in ((a, b), (b, a)):
            sigmoid = ctx.emitter.defined_by(gate, "sigmoid")
            if sigmoid is not None and isinstance(x, relax.Var) and sigmoid.args[0].same_as(x):
                return ctx.emit(op.nn.silu(x))
    if node.op_type == "Pow":
        return _power(ctx, a, b)
    return ctx.emit(_BINARY[node.op_type](ctx.expr(a), ctx.expr(b)))


def _power(ctx, base: Value, exponent: Value) -> relax.Var:
    """A square is a product; anything else is computed in float32, integers too."""
    dtype = ctx.dtype(base)
    if isinstance(exponent, np.ndarray) and exponent.ndim == 0 and float(exponent) == 2.0:
        return ctx.emit(op.multiply(ctx.expr(base), ctx.expr(base)))
    if isinstance(exponent, np.ndarray):
        exponent = exponent.astype(np.float32)
    operands = [
        ctx.expr(value) if ctx.dtype(value) == "float32" else op.astype(ctx.expr(value), "float32")
        for value in (base, exponent)
    ]
    out = op.power(*operands)
    return ctx.emit(out if dtype == "float32" else op.astype(op.round(out), dtype))


@onnx_op("Div")
def divide(ctx, node: Node, a: Value, b: Value) -> relax.Var:
    """Division; integers round towards zero."""
    b = _aligned(ctx, node, a, b)
    _require_broadcast(ctx, node, a, b)
    if ctx.dtype(a) == "float32":
        return ctx.emit(op.divide(ctx.expr(a), ctx.expr(b)))
    quotient = op.trunc(op.divide(op.astype(ctx.expr(a), "float64"), op.astype(ctx.expr(b), "float64")))
    return ctx.emit(op.astype(quotient, ctx.dtype(a)))


@onnx_op("Sum", "Max", "Min", "Mean")
def n_ary(ctx, node: Node, *values: Value) -> relax.Var | Value:
    """Sum, Max, Min and Mean of any number of tensors, as binary operators."""
    apply = {"Max": op.maximum, "Min": op.minimum}.get(node.op_type, op.add)
    _require_broadcast(ctx, node, *values)
    result = values[0]
    for index, value in enumerate(values[1:], start=2):
        is_last = index == len(values) and node.op_type != "Mean"
        result = ctx.emit(apply(ctx.expr(result), ctx.expr(value)), "" if is_last else f"part{index - 1}")
    if node.op_type == "Mean" and len(values) > 1:
        result = ctx.emit(op.multiply(result, ctx.scalar(1.0 / len(values))))
    return result


@onnx_op("IsInf")
def is_inf(ctx, node: Node, x: Value) -> relax.Var:
    """Which elements are infinite; of one sign only, if the node says so."""
    x, sides = ctx.expr(x), []
    if node.get("detect_positive", 1):
        sides.append(op.equal(x, ctx.scalar(np.inf)))
    if node.get("detect_negative", 1):
        sides.append(op.equal(x, ctx.scalar(-np.inf)))
    if not sides:
        return ctx.emit(op.not_equal(op.isnan(x), op.isnan(x)))
    return ctx.emit(op.logical_or(*sides) if len(sides) == 2 else sides[0])


@onnx_op("Where")
def where(ctx, node: Node, condition: Value, a: Value, b: Value) -> relax.Var:
    """Choose by a condition."""
    return ctx.emit(op.where(ctx.expr(condition), ctx.expr(a), ctx.expr(b)))


@onnx_op("Cast", "CastLike")
def cast(ctx, node: Node, x: Value, like: Value | None = None) -> Value:
    """Cast; between floating types it is nothing, since all of them are float32 here."""
    target = ctx.dtype(like) if node.op_type == "CastLike" else cast_dtype(node).name
    if target in ("float16", "float64", "bfloat16"):
        target = "float32"
    if isinstance(x, IntegerValued) and target == "float32":
        return x.value
    if ctx.dtype(x) == target:
        return x
    return ctx.emit(op.astype(ctx.expr(x), target))
