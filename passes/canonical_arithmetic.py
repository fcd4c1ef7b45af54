"""Canonicalize's rules for element-wise arithmetic with constants, for bounds (relu, clip), and for sums of many."""

from __future__ import annotations

from functools import reduce
from math import inf

import numpy as np
import tvm
from tvm import relax

from tvm_int8.passes.canonical_shapes import Rule
from tvm_int8.passes.dataflow import (
    Expr,
    Rebuilder,
    const_value,
    constant,
    dtype_of,
    is_float,
    op_name,
    shape_of,
)

_UNBOUNDED = float(np.finfo(np.float32).max)  # how exporters write "no limit" in a clip


def _constant_last(call: relax.Call, new: Rebuilder) -> Expr | None:
    left, right = call.args
    if const_value(left) is None or const_value(right) is not None:
        return None
    return relax.Call(call.op, [right, left], call.attrs, call.ty_args)


def _subtract(call: relax.Call, new: Rebuilder) -> Expr | None:
    data, array = call.args[0], const_value(call.args[1])
    return relax.op.add(data, constant(-array)) if array is not None and is_float(call) else None


def _divide(call: relax.Call, new: Rebuilder) -> Expr | None:
    data, array = call.args[0], const_value(call.args[1])
    if array is None or not is_float(call) or not np.all(array):
        return None
    with np.errstate(over="ignore"):
        reciprocal = (1 / array.astype(np.float64)).astype(array.dtype)
    return relax.op.multiply(data, constant(reciprocal)) if np.all(np.isfinite(reciprocal)) else None


def _bounds(call: Expr) -> tuple[Expr, float, float] | None:
    """Operand, lower and upper limit of an operator that limits its operand."""
    name = op_name(call)
    if name not in ("nn.relu", "clip", "maximum", "minimum") or not is_float(call):
        return None
    if name == "nn.relu":
        return call.args[0], 0.0, inf
    if name == "clip":
        low, high = (_number(arg) for arg in call.args[1:])
        return None if low is None or high is None else (call.args[0], low, high)
    data, other = call.args if const_value(call.args[0]) is None else reversed(call.args)
    array = const_value(other)
    if array is None or not np.all(array == array.flat[0]) or shape_of(data) != shape_of(call):
        return None
    limit = float(array.flat[0])
    return (data, limit, inf) if name == "maximum" else (data, -inf, limit)


def _number(expr: Expr) -> float | None:
    """A clip's limit; infinite from the largest float32 on."""
    if not isinstance(expr, tvm.tirx.IntImm | tvm.tirx.FloatImm):
        return None
    value = float(expr.value)
    return value if abs(value) < _UNBOUNDED else float(np.copysign(inf, value))


def _limit(call: relax.Call, new: Rebuilder) -> Expr | None:
    """Limits in a row become one; relu and clip are preferred to maximum and minimum."""
    swapped = _constant_last(call, new) if op_name(call) in ("maximum", "minimum") else None
    found = _bounds(call)
    if found is None or found[1] > found[2]:
        return swapped
    data, low, high = found
    merged = False
    while (inner := _bounds(new.value(data))) is not None and inner[1] <= inner[2] and new.read_once(data):
        data, inner_low, inner_high = inner
        low, high = (min(max(limit, low), high) for limit in (inner_low, inner_high))
        merged = True
    name = _limiter(low, high)
    if name == op_name(call) and not merged:
        return swapped
    if name == "nn.relu":
        return relax.op.nn.relu(data)
    if name == "clip":
        return relax.op.clip(data, low, high)
    if name == "":
        return data
    limit = constant(np.asarray(low if name == "maximum" else high, dtype_of(call)))
    return (relax.op.maximum if name == "maximum" else relax.op.minimum)(data, limit)


def _limiter(low: float, high: float) -> str:
    if high == inf:
        return "" if low == -inf else "nn.relu" if low == 0 else "maximum"
    return "minimum" if low == -inf else "clip"


def _sum(call: relax.Call, new: Rebuilder) -> Expr | None:
    """The sum of stacked tensors (how an n-ary Sum is imported) is a row of additions."""
    stack = new.value(call.args[0])
    if op_name(stack) != "stack" or not isinstance(stack.args[0], relax.Tuple) or call.attrs.axis is None:
        return None
    rank = len(shape_of(call.args[0]))
    axes = [int(axis) % rank for axis in call.attrs.axis]
    if axes != [int(stack.attrs.axis or 0) % rank] or call.attrs.keepdims:
        return None
    return reduce(relax.op.add, stack.args[0].fields)


RULES: dict[str, Rule] = {
    "add": _constant_last,
    "multiply": _constant_last,
    "subtract": _subtract,
    "divide": _divide,
    **dict.fromkeys(("nn.relu", "clip", "maximum", "minimum"), _limit),
    "sum": _sum,
}
