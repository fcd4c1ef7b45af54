"""Changes of stages before loops are chosen: inlining, splitting at conditions, splitting long reductions.

inlining     y = exp(x); z = y * 2             ->  z = exp(x) * 2                     unless that repeats expensive work
conditions   pad[i] = x[i - 1] if 1 <= i < 9   ->  three stages without a condition   where it would depend on the lane
reductions   s = sum(x[0:100000])              ->  p[c] = sum(x[c * 1000:]); s = sum(p)           one piece per task
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import tvm
from tvm import tirx
from tvm.ir import Call, TensorLoad, Var
from tvm.ir.prim import expr as prim

from .island_combine import combiner
from .island_expressions import Expr, children, i64, is_call, nodes, rewrite_down, substitute, uses
from .island_stages import Axis, Program, Stage, Write, shape_of

_CHEAP_OPERATIONS = 4
_CALL_WEIGHT = 8
_MANY = 4  # reads of each element
_SHORT_ROW = 64  # elements; in longer rows a condition on an outer axis costs nothing
_MAX_SEGMENTS = 12
_PIECE = 4096  # elements of a split reduction's pieces, at least


def weight(stage: Stage) -> int:
    """Vector operations per iteration, roughly."""
    return sum(max(1, _operations(write.value)) for write in stage.writes)


def _operations(expr: Expr) -> int:
    if isinstance(expr, TensorLoad):
        return 1
    if is_call(expr, "if_then_else"):
        return sum(_operations(branch) for branch in expr.args[1:])
    if isinstance(expr, Call):
        return _CALL_WEIGHT + sum(_operations(argument) for argument in expr.args)
    own = 0 if isinstance(expr, (Var, prim.Cast)) or not children(expr) else 1
    return own + sum(_operations(child) for child in children(expr))


def inline(program: Program) -> None:
    """Dissolve element-wise intermediate results into their consumers, where no expensive work is repeated."""
    for buffer in list(program.temps):
        producer = next((stage for stage in program.stages if buffer in stage.written), None)
        if producer is None or not _is_plain(producer):
            continue
        others = [stage for stage in program.stages if stage is not producer]
        consumers = [stage for stage in others if _count(stage, buffer)]
        reads = sum(_count(stage, buffer) * stage.iterations for stage in consumers)
        if consumers and _worth(producer, consumers, reads):
            program.stages = [_with_inlined(s, producer) if s in consumers else s for s in others]
            program.temps = [temp for temp in program.temps if not temp.same_as(buffer)]


def _is_plain(stage: Stage) -> bool:
    """Whether it stores one value per element, each at its own place."""
    if stage.is_reduction or stage.lets or len(stage.writes) != 1:
        return False
    return [i for i in stage.writes[0].indices if isinstance(i, Var)] == [axis.var for axis in stage.axes]


def _count(stage: Stage, buffer: Var) -> int:
    return sum(load.source == buffer for load in stage.reads())


def _worth(producer: Stage, consumers: Sequence[Stage], reads: int) -> bool:
    """Whether inlining repeats nothing, or little that is cheap.

    Reductions that read every element many times (matmul, convolution) want it computed once, in its own order and
    without conditions.
    """
    value = producer.writes[0].value
    conditional = any(is_call(node, "if_then_else") for node in nodes(value))
    reduced = any(consumer.is_reduction for consumer in consumers)
    if reduced and (conditional or reads >= _MANY * producer.iterations):
        return False
    if reads <= producer.iterations:
        return True
    slow = (prim.Div, prim.FloorDiv, prim.FloorMod, prim.Mod)
    calls = any(isinstance(n, slow) or (isinstance(n, Call) and not is_call(n, "if_then_else")) for n in nodes(value))
    return not calls and _operations(value) <= _CHEAP_OPERATIONS


def _with_inlined(stage: Stage, producer: Stage) -> Stage:
    return stage.map(lambda expr: _inlined(expr, producer))


def _inlined(expr: Expr, producer: Stage) -> Expr:
    write = producer.writes[0]

    def change(node):
        if not isinstance(node, TensorLoad) or node.source != write.buffer:
            return None
        indices = [_inlined(index, producer) for index in node.indices]
        values = {var: index for var, index in zip(write.indices, indices, strict=True) if isinstance(var, Var)}
        return substitute(write.value, values)

    return rewrite_down(expr, change)


def split_conditions(stage: Stage) -> list[Stage]:
    """Stages over parts of the domain in which conditions on the innermost axes are decided."""
    if stage.is_reduction or not any(is_call(node, "if_then_else") for e in stage.expressions() for node in nodes(e)):
        return [stage]
    parts, row = [stage], 1
    for axis in reversed(stage.axes):
        if row >= _SHORT_ROW:
            break
        row *= axis.extent
        cuts = sorted({0, axis.extent} | _breakpoints(stage, axis))
        if len(cuts) > 2 and len(parts) * (len(cuts) - 1) <= _MAX_SEGMENTS:
            parts = [_restricted(p, axis, a, b) for p in parts for a, b in itertools.pairwise(cuts)]
    return [_decided(part) for part in parts]


def _breakpoints(stage: Stage, axis: Axis) -> set[int]:
    """Where conditions comparing `axis` to constants change."""
    found = set()
    for expr in stage.expressions():
        for node in nodes(expr):
            if is_call(node, "if_then_else"):
                for condition in nodes(node.args[0]):
                    if isinstance(condition, (prim.LT, prim.LE, prim.GT, prim.GE, prim.EQ, prim.NE)):
                        found |= _roots(condition, axis)
    return {cut for cut in found if 0 < cut < axis.extent}


def _roots(condition, axis: Axis) -> set[int]:
    difference = condition.a - condition.b
    if str(difference.ty.dtype) != "int64" or not uses(difference, [axis.var]):
        return set()
    found = tvm.sym.detect_linear_equation(difference, [axis.var])
    if len(found) != 2:
        return set()
    factor, base = (tvm.sym.Analyzer().simplify(f) for f in found)
    if not isinstance(factor, prim.IntImm) or not isinstance(base, prim.IntImm):
        return set()
    root = -int(base.value) // int(factor.value)
    return {root, root + 1}


def _restricted(stage: Stage, axis: Axis, begin: int, end: int) -> Stage:
    """The stage over axis values from `begin` to `end`; the axis keeps its place and, moved, its meaning."""
    fresh = Axis(tirx.Var(str(axis.var.name), "int64"), end - begin, axis.reduced)
    axes = [fresh if a.var == axis.var else a for a in stage.axes]
    return stage.with_axes(axes, {axis.var: fresh.var + i64(begin) if begin else fresh.var})


def _decided(stage: Stage) -> Stage:
    analyzer = tvm.sym.Analyzer()
    for axis in stage.axes:
        analyzer.bind(axis.var, tvm.ir.Range.from_min_extent(i64(0), i64(axis.extent)))

    def change(node):
        if not is_call(node, "if_then_else"):
            return None
        condition = analyzer.simplify(node.args[0], 3)
        if isinstance(condition, prim.IntImm):
            return rewrite_down(node.args[1 if condition.value else 2], change)
        branches = [rewrite_down(branch, change) for branch in node.args[1:]]
        return tirx.if_then_else(condition, *branches)

    units = {axis.var: i64(0) for axis in stage.axes if axis.extent == 1}
    return stage.map(lambda e: rewrite_down(e, change)).with_axes([a for a in stage.axes if a.extent > 1], units)


def split_reduction(stage: Stage, tasks: int) -> tuple[list[Stage], list[Var]]:
    """A long reduction to few elements as partial reductions and one over these; also the buffers this needs."""
    few = math.prod(axis.extent for axis in stage.spatial) < tasks
    found = combiner(stage)
    if not stage.reduced or not few or stage.iterations < tasks * _PIECE or found is None:
        return [stage], []
    long = max(stage.reduced, key=lambda axis: axis.extent)
    pieces = [c for c in range(2, 65) if long.extent % c == 0 and stage.iterations // c >= _PIECE]
    if not pieces:
        return [stage], []
    count = max(pieces)
    write, (operator, term) = stage.writes[0], found
    piece, inner = Axis(tirx.Var("piece", "int64"), count), Axis(tirx.Var("k", "int64"), long.extent // count, True)
    partial = tirx.decl_buffer((count, *shape_of(write.buffer)), str(write.buffer.ty.dtype), "partial")
    at = (piece.var, *write.indices)
    moved = {long.var: piece.var * i64(inner.extent) + inner.var}
    own = tirx.BufferLoad(partial, list(at))
    first = replace(
        stage,
        name=f"{stage.name}_partial",
        axes=(piece, *(inner if axis is long else axis for axis in stage.axes)),
        writes=(Write(partial, at, operator(own, substitute(term, moved))),),
        init=(Write(partial, at, stage.init[0].value),),
    )
    last_piece = replace(piece, reduced=True)
    out = tirx.BufferLoad(write.buffer, list(write.indices))
    last = replace(
        stage, axes=(*stage.spatial, last_piece), writes=(Write(write.buffer, write.indices, operator(out, own)),)
    )
    return [first, last], [partial]
