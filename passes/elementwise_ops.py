"""Relax's element-wise operators as steps of an epilogue expression, one table."""

from __future__ import annotations

import math

import numpy as np

from .epilogue_expression import Node, apply, channel, number
from .expressions import Expr, const_value, op_name, shape_of

BINARY = {"add": "add", "subtract": "sub", "multiply": "mul", "divide": "div", "maximum": "max", "minimum": "min"}
UNARY = {
    "sigmoid": "sigmoid", "tanh": "tanh", "exp": "exp", "sqrt": "sqrt", "abs": "abs", "erf": "erf", "floor": "floor",
    "ceil": "ceil", "round": "round", "negative": "neg",
}  # fmt: skip


def _relu(x: Node, _call) -> Node:
    return apply("max", x, number(0.0))


def _clip(x: Node, call) -> Node:
    low, high = float(call.args[1].value), float(call.args[2].value)
    x = x if low == -math.inf else apply("max", x, number(low))
    return x if high == math.inf else apply("min", x, number(high))


def _leaky_relu(x: Node, call) -> Node:
    return apply("prelu", x, number(float(call.attrs.alpha)))


def _silu(x: Node, _call) -> Node:
    return apply("mul", x, apply("sigmoid", x))


def _gelu(x: Node, _call) -> Node:
    half = apply("mul", x, number(0.5))
    return apply("mul", half, apply("add", apply("erf", apply("mul", x, number(math.sqrt(0.5)))), number(1.0)))


def _gelu_tanh(x: Node, _call) -> Node:
    cube = apply("mul", apply("mul", x, x), x)
    inner = apply("mul", apply("add", x, apply("mul", cube, number(0.044715))), number(math.sqrt(2 / math.pi)))
    return apply("mul", apply("mul", x, number(0.5)), apply("add", apply("tanh", inner), number(1.0)))


def _square(x: Node, _call) -> Node:
    return apply("mul", x, x)


def _rsqrt(x: Node, _call) -> Node:
    return apply("div", number(1.0), apply("sqrt", x))


SPECIAL = {
    "nn.relu": _relu, "clip": _clip, "nn.leakyrelu": _leaky_relu, "nn.silu": _silu, "nn.gelu": _gelu,
    "nn.gelu_tanh": _gelu_tanh, "square": _square, "rsqrt": _rsqrt,
}  # fmt: skip


def constant_node(array: np.ndarray, shape: tuple[int, ...]) -> Node | None:
    """A constant operand of an operator with result `shape`, as a number or per channel (axis 1), else None."""
    if array.size == 1:
        return number(float(array.reshape(-1)[0]))
    aligned = (1,) * (len(shape) - array.ndim) + array.shape
    if len(shape) > 1 and len(aligned) == len(shape) and aligned[1] == shape[1] == array.size:
        return channel(array)
    return None


def is_elementwise(call: Expr) -> bool:
    """Whether `expression` can express this call (its operands' shapes aside)."""
    name = op_name(call)
    if name in BINARY or name in UNARY or name in SPECIAL:
        return True
    if name == "nn.prelu":
        slope = const_value(call.args[1])
        return slope is not None and int(call.attrs.axis) == 1
    if name == "power":
        exponent = const_value(call.args[1])
        return (
            exponent is not None and exponent.size == 1 and float(exponent.reshape(-1)[0]) in (0.5, 1.0, 2.0, 3.0, -1.0)
        )
    return False


def data_operands(call: Expr) -> list[Expr]:
    """The operands that are activations or constants of their shape; attributes given as arguments are left out."""
    name = op_name(call)
    return list(call.args[:2]) if name in BINARY else [call.args[0]]


def expression(call: Expr, operand) -> Node:
    """The node for `call`; `operand(expr, shape)` delivers the nodes of its data operands."""
    name, shape = op_name(call), shape_of(call)
    if name in BINARY:
        return apply(BINARY[name], operand(call.args[0], shape), operand(call.args[1], shape))
    x = operand(call.args[0], shape)
    if name in UNARY:
        return apply(UNARY[name], x)
    if name in SPECIAL:
        return SPECIAL[name](x, call)
    if name == "nn.prelu":
        slope = const_value(call.args[1])
        return apply("prelu", x, number(slope.reshape(-1)[0]) if slope.size == 1 else channel(slope))
    exponent = float(const_value(call.args[1]).reshape(-1)[0])
    return {
        0.5: lambda: apply("sqrt", x),
        1.0: lambda: x,
        2.0: lambda: apply("mul", x, x),
        3.0: lambda: apply("mul", apply("mul", x, x), x),
        -1.0: lambda: apply("div", number(1.0), x),
    }[exponent]()
