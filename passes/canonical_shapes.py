"""Canonicalize's rules for operators that only move or select data: reshape, permute_dims, split.

A rule is called as `rule(call, new)` and returns what replaces the call, or None. `new.value(var)` is what a variable
is bound to, with the rules already applied to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from tvm import relax

from tvm_int8.passes.dataflow import Expr, Rebuilder, op_name, shape_of

Rule = Callable[[relax.Call, Rebuilder], "Expr | None"]


def reshaped(data: Expr, shape: tuple[int, ...], new: Rebuilder) -> Expr:
    """`data` in another shape: of several reshapes in a row only the last one counts, and none for its own shape."""
    while op_name(new.value(data)) == "reshape":
        data = new.value(data).args[0]
    return data if shape_of(data) == shape else relax.op.reshape(data, shape)


def _as_reshape(call: relax.Call, new: Rebuilder) -> Expr | None:
    data = call.args[0]
    if rows := _rows_of_concat(call, new):
        return relax.op.concat(rows, axis=1)
    already = op_name(call) == "reshape" and op_name(new.value(data)) != "reshape" and shape_of(data) != shape_of(call)
    return None if already else reshaped(data, shape_of(call), new)


def _rows_of_concat(call: relax.Call, new: Rebuilder) -> list[Expr] | None:
    """The parts of a concat of reshapes, each in rows as `call` shapes the whole, so that nothing is copied twice."""
    concat, (n, *rows) = new.value(call.args[0]), shape_of(call)
    if op_name(concat) != "concat" or not new.read_once(call.args[0]) or len(rows) < 2:
        return None
    if len(shape_of(concat)) != 2 or shape_of(concat)[0] != n or int(concat.attrs.axis) not in (1, -1):
        return None
    parts, size = list(concat.args[0].fields), math.prod(rows[1:])
    if not all(op_name(new.value(part)) == "reshape" and shape_of(part)[1] % size == 0 for part in parts):
        return None
    return [reshaped(part, (n, shape_of(part)[1] // size, *rows[1:]), new) for part in parts]


def _permute_dims(call: relax.Call, new: Rebuilder) -> Expr | None:
    shape = shape_of(call.args[0])
    axes = range(len(shape))[::-1] if call.attrs.axes is None else [int(axis) % len(shape) for axis in call.attrs.axes]
    long_axes = [axis for axis in axes if shape[axis] != 1]
    return reshaped(call.args[0], shape_of(call), new) if long_axes == sorted(long_axes) else None


def slice_of_split(item: relax.TupleGetItem, new: Rebuilder) -> Expr | None:
    """Field `index` of a split, as a slice of what was split."""
    call = new.value(item.tuple_value)
    if op_name(call) != "split":
        return None
    axis = int(call.attrs.axis) % len(shape_of(call.args[0]))
    sizes = [int(field.shape[axis]) for field in call.ty.fields]
    begin = sum(sizes[: item.index])
    return relax.op.strided_slice(call.args[0], [axis], [begin], [begin + sizes[item.index]])


RULES: dict[str, Rule] = {
    **dict.fromkeys(("reshape", "expand_dims", "squeeze", "flatten", "nn.batch_flatten"), _as_reshape),
    "permute_dims": _permute_dims,
}
