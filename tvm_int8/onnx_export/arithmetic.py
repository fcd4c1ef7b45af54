"""Element-wise arithmetic, comparisons, type conversion; for products see `activation`."""

from __future__ import annotations

import numpy as np
from onnx import helper
from tvm import relax

from tvm_int8.passes.expressions import dtype_of

from .registry import relax_op
from .writer import OnnxWriter

_UNARY = {
    "abs": "Abs", "ceil": "Ceil", "cos": "Cos", "erf": "Erf", "exp": "Exp", "floor": "Floor", "log": "Log",
    "logical_not": "Not", "negative": "Neg", "round": "Round", "sign": "Sign", "sin": "Sin", "sqrt": "Sqrt",
}  # fmt: skip
_BINARY = {
    "add": "Add", "subtract": "Sub", "divide": "Div", "power": "Pow", "maximum": "Max",
    "minimum": "Min", "equal": "Equal", "less": "Less", "less_equal": "LessOrEqual", "greater": "Greater",
    "greater_equal": "GreaterOrEqual", "logical_and": "And", "logical_or": "Or", "logical_xor": "Xor",
}  # fmt: skip


def _same_operands(op_type: str):
    def rule(out: OnnxWriter, call: relax.Call) -> None:
        out.emit(op_type, *call.args)

    return rule


for _name, _op_type in {**_UNARY, **_BINARY, "where": "Where"}.items():
    relax_op(_name)(_same_operands(_op_type))


@relax_op("not_equal")
def not_equal(out: OnnxWriter, call: relax.Call) -> None:
    """Not(Equal)."""
    out.emit("Not", out.emit("Equal", *call.args, suffix="equal"))


@relax_op("square")
def square(out: OnnxWriter, call: relax.Call) -> None:
    """x * x."""
    out.emit("Mul", call.args[0], call.args[0])


@relax_op("rsqrt")
def reciprocal_square_root(out: OnnxWriter, call: relax.Call) -> None:
    """1 / sqrt(x)."""
    out.emit("Reciprocal", out.emit("Sqrt", call.args[0], suffix="root"))


@relax_op("trunc")
def truncate(out: OnnxWriter, call: relax.Call) -> None:
    """sign(x) * floor(|x|)."""
    magnitude = out.emit("Floor", out.emit("Abs", call.args[0], suffix="magnitude"), suffix="whole")
    out.emit("Mul", out.emit("Sign", call.args[0], suffix="sign"), magnitude)


@relax_op("astype")
def cast(out: OnnxWriter, call: relax.Call) -> None:
    """Cast."""
    out.emit("Cast", call.args[0], to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype_of(call))))
