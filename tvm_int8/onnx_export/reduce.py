"""Reductions."""

from __future__ import annotations

import numpy as np
from tvm import relax

from tvm_int8.passes.expressions import op_name, shape_of

from .registry import relax_op
from .writer import OnnxWriter

_REDUCTIONS = {"mean": "ReduceMean", "sum": "ReduceSum", "max": "ReduceMax", "min": "ReduceMin", "prod": "ReduceProd"}
_ARGUMENTS = {"argmax": "ArgMax", "argmin": "ArgMin"}


@relax_op(*_REDUCTIONS)
def reduction(out: OnnxWriter, call: relax.Call) -> None:
    """A reduction over some axes, or all of them."""
    rank, axes = len(shape_of(call.args[0])), call.attrs.axis
    chosen = range(rank) if axes is None else (int(axis) % rank for axis in axes)
    given = out.constant(np.asarray(list(chosen), np.int64), "axes")
    out.emit(_REDUCTIONS[op_name(call)], call.args[0], given, keepdims=int(call.attrs.keepdims))


@relax_op(*_ARGUMENTS)
def argument(out: OnnxWriter, call: relax.Call) -> None:
    """Where the largest or smallest element along an axis is."""
    if call.attrs.axis is None:
        raise out.error("searches a flattened tensor", "an axis")
    out.emit(_ARGUMENTS[op_name(call)], call.args[0], axis=int(call.attrs.axis), keepdims=int(call.attrs.keepdims))
