"""Kernels of flat stages: element-wise, reductions whose lanes are spatial, and reductions along contiguous memory.

elementwise   for outer: for vectors: out[vector] = value
columns       a tile of rows x vectors of accumulators in registers; all reduced axes inside         matmul, conv, mean over N
rows          partial results in the lanes of up to four vectors; then a tree over the lanes         softmax, mean over H, W

Rejected: `rfactor` and `decompose_reduction` of TensorIR schedules; they refuse blocks that share loops, and predicates
of tails end up in the vector loop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from tvm import tirx
from tvm.ir import TensorLoad, Var
from tvm.ir.prim import expr as prim
from tvm.tirx.script import builder as T

from .cpu import Cpu
from .island_expressions import Expr, i64, loads, nodes, rewrite_down, same, stride, substitute, uses
from .island_inline import combiner
from .island_loops import Lanes, access_cost, choose_lanes, indices, lane_count, lanewise, nest, waste
from .island_stages import Axis, Stage, Write

_TREE_COST = 24.0  # of combining the lanes of a vector, in vector operations
_ROW_VECTORS = 4


def emit(stage: Stage, cpu: Cpu, tasks: int) -> None:
    """Loops for one flat stage; `tasks` as in `island_loops.nest`."""
    if not stage.is_reduction:
        lanes, _ = choose_lanes(stage, stage.axes)
        _emit_elementwise(stage, lanes, tasks)
        return
    columns, column_cost = choose_lanes(stage, stage.spatial, 1 / math.prod(a.extent for a in stage.reduced))
    row, row_cost = _choose_row(stage)
    if row is not None and row_cost < column_cost:
        _emit_rows(stage, row, tasks)
        return
    for part, tile in _tiles(stage, columns, cpu):
        _emit_columns(part, tile, tasks)


def _store(write: Write, values: dict) -> None:
    T.buffer_store(write.buffer, substitute(write.value, values), [substitute(write.indices[0], values)])


def _vector(lanes: int, body) -> None:
    """`body(lane)` in a vector loop, or once when there is one lane."""
    if lanes == 1:
        body(i64(0))
    else:
        with T.vectorized(i64(lanes)) as lane:
            body(lane)


def _emit_elementwise(stage: Stage, lanes: Lanes | None, tasks: int) -> None:
    others = [axis for axis in stage.axes if lanes is None or axis is not lanes.axis]
    if lanes is not None:
        stage = stage.map(lambda e: lanewise(e, lanes.axis.var))
    with nest([*(a.extent for a in others), lanes.tiles if lanes else 1], tasks) as found:
        values = {axis.var: index for axis, index in zip(others, found[:-1], strict=True)}

        def statement(lane):
            if lanes is not None:
                values[lanes.axis.var] = lanes.start(found[-1]) + lane
            for write in stage.writes:
                _store(write, values)

        _vector(lanes.lanes if lanes else 1, statement)


class _Tile:
    """Accumulators: `rows` along `axis` (or one) times `vectors` of `lanes` along the lanes' axis."""

    def __init__(self, lanes: Lanes | None, vectors: int = 1, axis: Axis | None = None, rows: int = 1):
        self.lanes, self.vectors, self.axis, self.rows = lanes, vectors, axis, rows
        self.width = lanes.lanes if lanes else 1
        self.columns = Lanes(lanes.axis, self.width * vectors) if lanes else None

    def cells(self):
        return [(row, vector) for row in range(self.rows) for vector in range(self.vectors)]

    def offset(self, row: int, vector: int) -> int:
        return (row * self.vectors + vector) * self.width

    @property
    def size(self) -> int:
        return self.rows * self.vectors * self.width


def _tiles(stage: Stage, lanes: Lanes | None, cpu: Cpu) -> list[tuple[Stage, _Tile]]:
    """The register tile; what its rows leave over is a second stage with a smaller one."""
    if lanes is None:
        return [(stage, _Tile(None))]
    budget = max(1, cpu.vector_registers * cpu.vector_bits * 3 // (4 * 512 * len(stage.writes)))
    most = min(4, lanes.axis.extent // lanes.lanes, budget)
    vectors = min(range(most, 0, -1), key=lambda n: -(-lanes.axis.extent // (n * lanes.lanes)) * n)
    axis = _shared_axis(stage, lanes.axis)
    limit = min(budget // vectors, axis.extent) if axis else 1
    if limit <= 1:
        return [(stage, _Tile(lanes, vectors))]
    rows = max(n for n in range(1, limit + 1) if axis.extent % n == 0)
    if 2 * rows > limit:
        return [(stage, _Tile(lanes, vectors, axis, rows))]
    whole = axis.extent - axis.extent % limit
    rest = replace(axis, extent=axis.extent - whole)
    moved = stage.with_axes([rest if a is axis else a for a in stage.axes], {axis.var: axis.var + i64(whole)})
    main = replace(axis, extent=whole)
    return [
        (stage.with_axes([main if a is axis else a for a in stage.axes]), _Tile(lanes, vectors, main, limit)),
        (moved, _Tile(lanes, vectors, rest, rest.extent)),
    ]


def _shared_axis(stage: Stage, lanes: Axis) -> Axis | None:
    """A spatial axis along which the vectors that are loaded stay the same."""
    vectors = [load.indices[0] for e in stage.expressions() for load in loads(e) if load.source not in stage.written]
    vectors = [index for index in vectors if stride(index, lanes.var) != 0]
    for axis in reversed(stage.spatial):
        if axis is not lanes and vectors and all(not uses(index, [axis.var]) for index in vectors):
            return axis
    return None


def _emit_columns(stage: Stage, tile: _Tile, tasks: int) -> None:
    """Spatial lanes: accumulators start from the initial value, take in all reduced iterations, and are stored once."""
    if tile.lanes is not None:
        stage = stage.map(lambda e: lanewise(e, tile.lanes.axis.var))
    inside = [a for a in (tile.axis, tile.lanes.axis if tile.lanes else None) if a is not None]
    others = [axis for axis in stage.spatial if axis not in inside]
    row_tiles = tile.axis.extent // tile.rows if tile.axis else 1
    column_tiles = tile.columns.tiles if tile.lanes else 1
    with nest([*(a.extent for a in others), row_tiles, column_tiles], tasks) as found:
        values = {axis.var: index for axis, index in zip(others, found[:-2], strict=True)}
        sums = [T.alloc_buffer((tile.size,), str(w.buffer.ty.dtype), scope="local") for w in stage.writes]

        def place(row, vector, lane):
            if tile.axis is not None:
                values[tile.axis.var] = found[-2] * i64(tile.rows) + i64(row)
            if tile.lanes is not None:
                values[tile.lanes.axis.var] = tile.columns.start(found[-1]) + i64(vector * tile.width) + lane
            return i64(tile.offset(row, vector)) + lane

        def every_cell(body):
            for row, vector in tile.cells():
                _vector(tile.width, lambda lane, row=row, vector=vector: body(place(row, vector, lane)))

        every_cell(lambda at: [T.buffer_store(s, substitute(w.value, values), [at]) for s, w in zip(sums, stage.init)])  # noqa: B905
        with nest([axis.extent for axis in stage.reduced], 0) as steps:
            values |= {axis.var: index for axis, index in zip(stage.reduced, steps, strict=True)}
            every_cell(lambda at: _accumulate(stage, sums, at, values))
        for write, total in zip(stage.writes, sums, strict=True):
            result = lambda at, w=write, s=total: T.buffer_store(s and w.buffer, s[at], [substitute(w.indices[0], values)])  # noqa: E731
            every_cell(result)


def _accumulate(stage: Stage, sums: Sequence[Var], at: Expr, values: dict) -> None:
    own = dict(zip(stage.written, sums, strict=True))

    def change(node):
        return tirx.BufferLoad(own[node.source], [at]) if isinstance(node, TensorLoad) and node.source in own else None

    names = dict(values)
    for var, value in stage.lets:
        names[var] = T.Bind(substitute(rewrite_down(value, change), names))
    results = [substitute(rewrite_down(write.value, change), names) for write in stage.writes]
    for total, result in zip(sums, results, strict=True):
        T.buffer_store(total, result, [at])


def _choose_row(stage: Stage) -> tuple[Axis | None, float]:
    """The reduced axis along which memory is contiguous, and its cost per iteration."""
    if not stage.reduced or _row_combiner(stage) is None:
        return None, math.inf
    found = [index for index in indices(stage) if uses(index, [axis.var for axis in stage.reduced])]
    count = lane_count(stage)
    best, lowest = None, math.inf
    for axis in reversed(stage.reduced):
        cost = (access_cost(found, axis.var) + 0.5) * waste(axis.extent, count)
        cost += _TREE_COST / math.prod(a.extent for a in stage.reduced)
        if cost < lowest:
            best, lowest = axis, cost
    return best, lowest


def _row_combiner(stage: Stage):
    """combine(accumulators, terms) -> accumulators, and the terms of one iteration; None when it is not known."""
    found = combiner(stage)
    if found is not None:
        operator, term = found
        return (lambda a, b: [operator(a[0], b[0])]), [term]
    return _index_combiner(stage)


def _index_combiner(stage: Stage):
    """argmax and argmin: the body compares (index, value) pairs, and so can compare lanes."""
    if len(stage.writes) != 2 or len(stage.lets) != 2:
        return None
    own = [tirx.BufferLoad(w.buffer, list(w.indices)) for w in stage.writes]
    values = [load for _, e in stage.lets for load in loads(e) if load.source not in stage.written]
    first = stage.lets[0][1]
    if not values or not all(same(values[0], v) for v in values) or not isinstance(first, prim.Select):
        return None
    position = first.false_value
    reduced = [axis.var for axis in stage.reduced]
    if any(isinstance(node, TensorLoad) for node in nodes(position)) or not uses(position, reduced):
        return None

    def combine(a, b):
        def change(node):
            for old, new in ((own[0], a[0]), (own[1], a[1]), (values[0], b[1]), (position, b[0])):
                if same(node, old):
                    return new
            return None

        return [rewrite_down(value, change) for _, value in stage.lets]

    return combine, [position, values[0]]


def _emit_rows(stage: Stage, axis: Axis, tasks: int) -> None:
    """Reduced lanes: every lane has its own partial result; a tree combines them."""
    combine, terms = _row_combiner(stage)
    terms = [lanewise(term, axis.var) for term in terms]
    lanes = min(lane_count(stage), axis.extent)
    vectors = min(_ROW_VECTORS, axis.extent // lanes)
    others = [a for a in stage.reduced if a is not axis]
    with nest([*(a.extent for a in stage.spatial), 1], tasks) as found:
        values = {a.var: index for a, index in zip(stage.spatial, found[:-1], strict=True)}
        sums = [T.alloc_buffer((vectors * lanes,), str(w.buffer.ty.dtype), scope="local") for w in stage.writes]

        def merge(at, new):
            old = [total[at] for total in sums]
            for total, result in zip(sums, [T.Bind(r) for r in combine(old, new)], strict=True):
                T.buffer_store(total, result, [at])

        def take(first, vector, width):
            def body(lane):
                here = values | {axis.var: first + lane}
                merge(i64(vector * lanes) + lane, [substitute(term, here) for term in terms])

            _vector(width, body)

        for vector in range(vectors):
            start = lambda lane, v=vector: [  # noqa: E731
                T.buffer_store(s, substitute(w.value, values), [i64(v * lanes) + lane])
                for s, w in zip(sums, stage.init, strict=True)
            ]
            _vector(lanes, start)
        with nest([a.extent for a in others], 0) as steps:
            values |= {a.var: index for a, index in zip(others, steps, strict=True)}
            _row(axis.extent, lanes, vectors, take)
        _combine_lanes(merge, sums, lanes, vectors)
        for write, total in zip(stage.writes, sums, strict=True):
            T.buffer_store(write.buffer, total[i64(0)], [substitute(write.indices[0], values)])


def _row(extent: int, lanes: int, vectors: int, take) -> None:
    """All elements of one row: groups of vectors, single vectors, single lanes."""
    groups, done = extent // (lanes * vectors), 0
    if groups:
        with nest([groups], 0) as (group,):
            for vector in range(vectors):
                take(group * i64(lanes * vectors) + i64(vector * lanes), vector, lanes)
        done = groups * lanes * vectors
    for vector in range((extent - done) // lanes):
        take(i64(done), vector, lanes)
        done += lanes
    if done < extent:
        take(i64(done), 0, extent - done)


def _combine_lanes(merge, sums, lanes: int, vectors: int) -> None:
    """The result of all lanes of all vectors, into lane 0."""
    for vector in range(1, vectors):
        _vector(lanes, lambda lane, v=vector: merge(lane, [total[i64(v * lanes) + lane] for total in sums]))
    while lanes > 1:
        half = lanes // 2
        upper = i64(lanes - half)
        _vector(half, lambda lane, upper=upper: merge(lane, [total[upper + lane] for total in sums]))
        lanes -= half
