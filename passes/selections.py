"""Operators that select: every element of their result is an element of an operand, or zero.

They commute with rounding: quantised data stay quantised, with the same scale and zero point.
"""

from __future__ import annotations

from tvm import relax

from .expressions import Expr, op_name

_ALWAYS = ("reshape", "permute_dims", "strided_slice", "take", "concat", "nn.max_pool2d")


def selects(call: Expr) -> bool:
    """Whether `call` is a selection: movers of data, maxima over windows, padding with zeros or copies."""
    name = op_name(call)
    if name == "nn.pad":
        return str(call.attrs.pad_mode) != "constant" or float(call.attrs.pad_value) == 0.0
    return name in _ALWAYS or (name == "image.resize2d" and str(call.attrs.method) == "nearest_neighbor")


def selected_from(call: relax.Call) -> list[Expr]:
    """The tensors a selection takes elements of."""
    return list(call.args[0].fields) if op_name(call) == "concat" else [call.args[0]]
