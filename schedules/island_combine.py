"""What a reduction combines: needed wherever partial results are merged, in lanes or between tasks."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.ir import TensorLoad
from tvm.ir.prim import expr as prim

from .island_expressions import Expr, loads, rewrite_down, same, uses
from .island_stages import Stage, Write

#: New accumulators of two sets of them.
Combine = Callable[[list, list], list]
_ASSOCIATIVE = (prim.Add, prim.Mul, prim.Max, prim.Min, prim.And, prim.Or)


def _own(write: Write) -> TensorLoad:
    return tirx.BufferLoad(write.buffer, list(write.indices))


def combiner(stage: Stage) -> tuple[type, Expr] | None:
    """(operator, term) of a stage that does `out = operator(out, term)`; None for any other."""
    if len(stage.writes) != 1 or stage.lets or not stage.init or not isinstance(stage.writes[0].value, _ASSOCIATIVE):
        return None
    write = stage.writes[0]
    for self_side, term in ((write.value.a, write.value.b), (write.value.b, write.value.a)):
        if same(self_side, _own(write)) and all(load.source != write.buffer for load in loads(term)):
            return type(write.value), term
    return None


def row_combiner(stage: Stage) -> tuple[Combine, list[Expr]] | None:
    """(combine, terms): `combine(accumulators, others)` are new accumulators; `terms` are one iteration's `others`.

    One accumulator for sums, products, extrema; (index, value) for argmax and argmin.  None when it is neither.
    """
    found = combiner(stage)
    if found is not None:
        operator, term = found
        return (lambda a, b: [operator(a[0], b[0])]), [term]
    return _index_combiner(stage)


def _index_combiner(stage: Stage):
    """argmax and argmin: the body compares (index, value) pairs, and so it can compare lanes."""
    if len(stage.writes) != 2 or len(stage.lets) != 2 or not isinstance(stage.lets[0][1], prim.Select):
        return None
    own = [_own(write) for write in stage.writes]
    values = [load for _, e in stage.lets for load in loads(e) if load.source not in stage.written]
    position = stage.lets[0][1].false_value
    if not values or not all(same(values[0], value) for value in values):
        return None
    if loads(position) or not uses(position, [axis.var for axis in stage.reduced]):
        return None

    def combine(a, b):
        def change(node):
            for old, new in ((own[0], a[0]), (own[1], a[1]), (values[0], b[1]), (position, b[0])):
                if same(node, old):
                    return new
            return None

        return [rewrite_down(value, change) for _, value in stage.lets]

    return combine, [position, values[0]]
