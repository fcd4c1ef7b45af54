"""Kernels of flat stages: element-wise, reductions whose lanes are spatial, and reductions along contiguous memory.

elementwise   for outer: for vectors: out[vector] = value
columns       a tile of rows x vectors of accumulators in registers, all reduced axes inside          matmul, conv, mean over N
rows          partial results in the lanes of up to four vectors, then a tree over the lanes          softmax, mean over H, W

Rejected: `rfactor` and `decompose_reduction` of TensorIR schedules; they refuse blocks that share loops, and predicates
of tails end up in the vector loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.ir import TensorLoad, Var
from tvm.tirx.script import builder as T

from .cpu import Cpu
from .island_combine import row_combiner
from .island_expressions import Expr, i64, loads, rewrite_down, stride, substitute, uses
from .island_loops import Lanes, access_cost, choose_lanes, indices, lane_count, lanewise, nest, waste
from .island_stages import Axis, Stage, cut

_TREE_COST = 24.0  # of combining the lanes of a vector, in vector operations
_ROW_VECTORS = 4


@dataclass
class Emitter:
    """Emits flat stages into the function that is being built.

    tasks : as in `island_loops.nest`
    overlap : whether the last vector of a row may compute elements again; not where a buffer may be overwritten in place
    vectors : vector loops emitted so far
    """

    cpu: Cpu
    tasks: int = 0
    overlap: bool = True
    vectors: int = 0

    def emit(self, stage: Stage) -> None:
        """Loops for one flat stage."""
        if not stage.is_reduction:
            self._elementwise(stage)
            return
        columns, column_cost = choose_lanes(stage, stage.spatial, 1 / math.prod(a.extent for a in stage.reduced))
        row, row_cost = _choose_row(stage)
        if row is not None and row_cost < column_cost:
            self._rows(stage, row)
            return
        for part, tile in _tiles(stage, columns, self.cpu):
            self._columns(part, tile)

    def vector(self, lanes: int, body: Callable[[Expr], None]) -> None:
        """`body(lane)` in a vector loop, or once when there is one lane."""
        if lanes == 1:
            body(i64(0))
            return
        self.vectors += 1
        with T.vectorized(i64(lanes)) as lane:
            body(lane)

    def _elementwise(self, stage: Stage) -> None:
        lanes, _ = choose_lanes(stage, stage.axes)
        if lanes is not None and not self.overlap and lanes.axis.extent % lanes.lanes:
            whole = lanes.axis.extent - lanes.axis.extent % lanes.lanes
            first, second, main, rest = cut(stage, lanes.axis, whole)
            self._vectors(first, Lanes(main, lanes.lanes))
            self._vectors(second, Lanes(rest, rest.extent))
        else:
            self._vectors(stage, lanes)

    def _vectors(self, stage: Stage, lanes: Lanes | None) -> None:
        others = [axis for axis in stage.axes if lanes is None or axis is not lanes.axis]
        if lanes is not None:
            stage = stage.map(lambda e: lanewise(e, lanes.axis.var))
        with nest([*(a.extent for a in others), lanes.tiles if lanes else 1], self.tasks) as found:
            values = {axis.var: index for axis, index in zip(others, found[:-1], strict=True)}

            def statement(lane):
                if lanes is not None:
                    values[lanes.axis.var] = lanes.start(found[-1]) + lane
                for write in stage.writes:
                    T.buffer_store(write.buffer, substitute(write.value, values), [substitute(write.indices[0], values)])

            self.vector(lanes.lanes if lanes else 1, statement)

    def _columns(self, stage: Stage, tile: Tile) -> None:
        """Spatial lanes: accumulators start from the initial value, take in all reduced iterations, are stored once."""
        if tile.lanes is not None:
            stage = stage.map(lambda e: lanewise(e, tile.lanes.axis.var))
        others = [axis for axis in stage.spatial if axis is not tile.axis and (tile.lanes is None or axis is not tile.lanes.axis)]
        with nest([*(a.extent for a in others), tile.row_tiles, tile.column_tiles], self.tasks) as found:
            values = {axis.var: index for axis, index in zip(others, found[:-2], strict=True)}
            sums = [T.alloc_buffer((tile.size,), str(w.buffer.ty.dtype)) for w in stage.writes]

            def every_cell(body):
                for row, vector in tile.cells():

                    def one(lane, row=row, vector=vector):
                        values.update(tile.place(found[-2], found[-1], row, vector, lane))
                        body(i64(tile.offset(row, vector)) + lane)

                    self.vector(tile.width, one)

            def start(at):
                for total, write in zip(sums, stage.init, strict=True):
                    T.buffer_store(total, substitute(write.value, values), [at])

            def finish(at):
                for total, write in zip(sums, stage.writes, strict=True):
                    T.buffer_store(write.buffer, total[at], [substitute(write.indices[0], values)])

            every_cell(start)
            with nest([axis.extent for axis in stage.reduced], 0) as steps:
                values |= {axis.var: index for axis, index in zip(stage.reduced, steps, strict=True)}
                every_cell(lambda at: _accumulate(stage, sums, at, values))
            every_cell(finish)

    def _rows(self, stage: Stage, axis: Axis) -> None:
        """Reduced lanes: every lane has its own partial result; a tree combines them."""
        combine, terms = row_combiner(stage)
        terms = [lanewise(term, axis.var) for term in terms]
        lanes = min(lane_count(stage), axis.extent)
        vectors = min(_ROW_VECTORS, axis.extent // lanes)
        others = [a for a in stage.reduced if a is not axis]
        with nest([*(a.extent for a in stage.spatial), 1], self.tasks) as found:
            values = {a.var: index for a, index in zip(stage.spatial, found[:-1], strict=True)}
            sums = [T.alloc_buffer((vectors * lanes,), str(w.buffer.ty.dtype)) for w in stage.writes]

            def merge(at, new):
                results = [T.Bind(result) for result in combine([total[at] for total in sums], new)]
                for total, result in zip(sums, results, strict=True):
                    T.buffer_store(total, result, [at])

            def take(first, vector, width):
                def one(lane):
                    here = values | {axis.var: first + lane}
                    merge(i64(vector * lanes) + lane, [substitute(term, here) for term in terms])

                self.vector(width, one)

            def start(lane):
                for total, write in zip(sums, stage.init, strict=True):
                    for vector in range(vectors):
                        T.buffer_store(total, substitute(write.value, values), [i64(vector * lanes) + lane])

            self.vector(lanes, start)
            with nest([a.extent for a in others], 0) as steps:
                values |= {a.var: index for a, index in zip(others, steps, strict=True)}
                _row(axis.extent, lanes, vectors, take)
            self._combine_lanes(merge, sums, lanes, vectors)
            for write, total in zip(stage.writes, sums, strict=True):
                T.buffer_store(write.buffer, total[i64(0)], [substitute(write.indices[0], values)])

    def _combine_lanes(self, merge, sums, lanes: int, vectors: int) -> None:
        """The result of all lanes of all vectors, into lane 0."""
        for vector in range(1, vectors):
            self.vector(lanes, lambda lane, v=vector: merge(lane, [total[i64(v * lanes) + lane] for total in sums]))
        while lanes > 1:
            half = lanes // 2
            upper = i64(lanes - half)
            self.vector(half, lambda lane, upper=upper: merge(lane, [total[upper + lane] for total in sums]))
            lanes -= half


@dataclass
class Tile:
    """Accumulators: `rows` along `axis` (or one) times `vectors` vectors along the lanes' axis."""

    lanes: Lanes | None
    vectors: int = 1
    axis: Axis | None = None
    rows: int = 1

    @property
    def width(self) -> int:
        return self.lanes.lanes if self.lanes else 1

    @property
    def size(self) -> int:
        return self.rows * self.vectors * self.width

    @property
    def row_tiles(self) -> int:
        return self.axis.extent // self.rows if self.axis else 1

    @property
    def column_tiles(self) -> int:
        return self._columns.tiles if self.lanes else 1

    @property
    def _columns(self) -> Lanes:
        return Lanes(self.lanes.axis, self.width * self.vectors)

    def cells(self) -> list[tuple[int, int]]:
        """(row, vector) of every accumulator vector."""
        return [(row, vector) for row in range(self.rows) for vector in range(self.vectors)]

    def offset(self, row: int, vector: int) -> int:
        """Where an accumulator vector starts."""
        return (row * self.vectors + vector) * self.width

    def place(self, row_tile: Expr, column_tile: Expr, row: int, vector: int, lane: Expr) -> dict[Var, Expr]:
        """Values of the tile's axes."""
        values = {}
        if self.axis is not None:
            values[self.axis.var] = row_tile * i64(self.rows) + i64(row)
        if self.lanes is not None:
            values[self.lanes.axis.var] = self._columns.start(column_tile) + i64(vector * self.width) + lane
        return values


def _tiles(stage: Stage, lanes: Lanes | None, cpu: Cpu) -> list[tuple[Stage, Tile]]:
    """The register tile; what its rows leave over is a second stage with a smaller one."""
    if lanes is None:
        return [(stage, Tile(None))]
    budget = max(1, cpu.vector_registers * cpu.vector_bits * 3 // (4 * 512 * len(stage.writes)))
    axis = _shared_axis(stage, lanes.axis)
    most = min(_ROW_VECTORS if axis else 2 * _ROW_VECTORS, lanes.axis.extent // lanes.lanes, budget)
    vectors = min(range(most, 0, -1), key=lambda n: -(-lanes.axis.extent // (n * lanes.lanes)) * n)
    limit = min(budget // vectors, axis.extent) if axis else 1
    if limit <= 1:
        return [(stage, Tile(lanes, vectors))]
    rows = max(n for n in range(1, limit + 1) if axis.extent % n == 0)
    if 2 * rows > limit:
        return [(stage, Tile(lanes, vectors, axis, rows))]
    first, second, main, rest = cut(stage, axis, axis.extent - axis.extent % limit)
    return [(first, Tile(lanes, vectors, main, limit)), (second, Tile(lanes, vectors, rest, rest.extent))]


def _shared_axis(stage: Stage, lanes: Axis) -> Axis | None:
    """A spatial axis along which the vectors that are loaded stay the same."""
    vectors = [load.indices[0] for e in stage.expressions() for load in loads(e) if load.source not in stage.written]
    vectors = [index for index in vectors if stride(index, lanes.var) != 0]
    for axis in reversed(stage.spatial):
        if axis is not lanes and vectors and all(not uses(index, [axis.var]) for index in vectors):
            return axis
    return None


def _accumulate(stage: Stage, sums: Sequence[Var], at: Expr, values: dict) -> None:
    """One iteration of the stage's statements on its accumulators."""
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
    if not stage.reduced or row_combiner(stage) is None:
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


def _row(extent: int, lanes: int, vectors: int, take) -> None:
    """All elements of one row: groups of vectors, single vectors, single lanes."""
    groups = extent // (lanes * vectors)
    with nest([groups], 0) as (group,):
        for vector in range(vectors):
            take(group * i64(lanes * vectors) + i64(vector * lanes), vector, lanes)
    done = groups * lanes * vectors
    for vector in range((extent - done) // lanes):
        take(i64(done), vector, lanes)
        done += lanes
    if done < extent:
        take(i64(done), 0, extent - done)
