"""FoldConstants: what does not depend on the input is computed once, and operators that do nothing go away.

before   broadcast_to(c, (64, 3, 7, 7)), permute_dims(c), reshape(c), sqrt(c + eps), shape_of(x) ...
after    a constant

before   reshape or broadcast_to the same shape, identity permute_dims, astype to the same type, nn.pad by nothing,
         multiply or divide by 1, add or subtract 0, nn.dropout(x)[0], concat of one, strided_slice of everything
after    their operand

Requires   nothing.
Ensures    every operand that can be known is a constant. `quantize` and `dequantize` are never evaluated: an int8
           constant behind a dequantize is a quantised weight, and stays one.
Not        calls of TIR functions and of external functions.
Source     constant propagation, as in `relax.transform.FoldConstant`, which compiles every operator and folds QDQ too.
"""

from __future__ import annotations

from collections.abc import Callable

import tvm
from tvm import relax

from tvm_int8.passes.constant_evaluation import evaluate
from tvm_int8.passes.dataflow import Expr, Rebuilder, const_value, dtype_of, op_name, rebuild, shape_of

_KEPT = {"quantize", "dequantize", "nn.dropout", "call_tir", "call_dps_packed", "call_pure_packed", "null_value"}


@tvm.transform.module_pass(opt_level=0, name="FoldConstants")
class FoldConstants:
    """Evaluate operators on constants and remove those without effect."""

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Return the module without constant or idle operators."""
        return rebuild(mod, _rewrite)


def _rewrite(binding: relax.VarBinding, value: Expr, new: Rebuilder) -> Expr | None:
    if isinstance(value, relax.TupleGetItem):
        source = new.value(value.tuple_value)
        return source.args[0] if op_name(source) == "nn.dropout" and value.index == 0 else None
    name = op_name(value)
    if not name or name in _KEPT:
        return None
    if name == "shape_of":
        return relax.ShapeExpr(shape_of(value.args[0]))
    same = _IDLE[name](value) if name in _IDLE else None
    return same if same is not None else evaluate(value)


def _same_type(call: relax.Call) -> Expr | None:
    """The first operand, when shape and dtype of the result are its own."""
    operand = call.args[0]
    if not isinstance(operand.ty, relax.TensorType):
        return None
    same = shape_of(operand) == shape_of(call) and dtype_of(operand) == dtype_of(call)
    return operand if same else None


def _with_neutral(neutral: int, commutes: bool) -> Callable[[relax.Call], Expr | None]:
    def idle(call: relax.Call) -> Expr | None:
        left, right = call.args
        for operand, other in ((left, right), (right, left))[: 2 if commutes else 1]:
            number = const_value(other)
            if number is not None and (number == neutral).all() and shape_of(operand) == shape_of(call):
                return operand
        return None

    return idle


def _identity_permute(call: relax.Call) -> Expr | None:
    axes = call.attrs.axes
    rank = len(shape_of(call))
    order = range(rank)[::-1] if axes is None else [int(axis) % rank for axis in axes]
    return call.args[0] if list(order) == list(range(rank)) else None


def _empty_pad(call: relax.Call) -> Expr | None:
    return None if any(int(width) for width in call.attrs.pad_width) else call.args[0]


def _single_concat(call: relax.Call) -> Expr | None:
    parts = call.args[0]
    return parts.fields[0] if isinstance(parts, relax.Tuple) and len(parts.fields) == 1 else None


def _whole_slice(call: relax.Call) -> Expr | None:
    """A slice of the operand's own shape, walked forwards."""
    steps = call.args[4].fields if len(call.args) > 4 else []
    return _same_type(call) if all(getattr(step, "value", 0) == 1 for step in steps) else None


_IDLE: dict[str, Callable[[relax.Call], Expr | None]] = {
    "reshape": _same_type,
    "broadcast_to": _same_type,
    "astype": _same_type,
    "flatten": _same_type,
    "squeeze": _same_type,
    "permute_dims": _identity_permute,
    "nn.pad": _empty_pad,
    "concat": _single_concat,
    "strided_slice": _whole_slice,
    "multiply": _with_neutral(1, commutes=True),
    "divide": _with_neutral(1, commutes=False),
    "add": _with_neutral(0, commutes=True),
    "subtract": _with_neutral(0, commutes=False),
}
