"""Kernels of flat stages: element-wise, reductions whose lanes are spatial, and reductions along contiguous memory.

elementwise   for outer: for vectors: out[vector] = value
columns       a tile of rows x vectors of accumulators, all reduced axes inside        matmul, conv, mean over N
rows          partial results in the lanes of up to four vectors, then a tree          softmax, mean over H and W

Accumulators are small buffers of global scope: those become stack slots, which LLVM turns into registers because every
index is a constant.  Buffers of local scope may become calls of the runtime's allocator.

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
from .island_combine import Combine, row_combiner
from .island_expressions import Expr, i64, rewrite_down, substitute, uses
from .island_loops import Lanes, access_cost, choose_lanes, indices, lane_count, lanewise, nest, waste
from .island_stages import Axis, Stage, Write, cut
from .island_tiles import Tile, tiles

_TREE_COST = 24.0  # of combining the lanes of a vector, in vector operations
_ROW_VECTORS = 4


@dataclass
class Emitter:
    """Emits flat stages into the function that is being built.

    tasks : as in `island_loops.nest`
    overlap : whether the last vector of a row may compute elements again; not where TensorIR's storage rewriting may
        have the stage overwrite what it reads
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
        combine = row_combiner(stage)
        if row is not None and combine is not None and row_cost < column_cost:
            self._rows(stage, row, *combine)
            return
        for part, tile in tiles(stage, columns, self.cpu):
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
                    _store(write, write.value, values)

            self.vector(lanes.lanes if lanes else 1, statement)

    def _columns(self, stage: Stage, tile: Tile) -> None:
        """Spatial lanes: accumulators start from the initial value, take in all reduced iterations, are stored once."""
        if tile.lanes is not None:
            lane_axis = tile.lanes.axis.var
            stage = stage.map(lambda e: lanewise(e, lane_axis))
        others = [axis for axis in stage.spatial if axis not in tile.axes]
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
                    _store(write, total[at], values)

            every_cell(start)
            with nest([axis.extent for axis in stage.reduced], 0) as steps:
                values |= {axis.var: index for axis, index in zip(stage.reduced, steps, strict=True)}
                every_cell(lambda at: _accumulate(stage, sums, at, values))
            every_cell(finish)

    def _rows(self, stage: Stage, axis: Axis, combine: Combine, terms: list[Expr]) -> None:
        """Reduced lanes: every lane has its own partial result; a tree combines them."""
        terms = [lanewise(term, axis.var) for term in terms]
        lanes = min(lane_count(stage), axis.extent)
        vectors = min(_ROW_VECTORS if len(terms) == 1 else 1, axis.extent // lanes)
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
                _store(write, total[i64(0)], values)

    def _combine_lanes(self, merge, sums, lanes: int, vectors: int) -> None:
        """The result of all lanes of all vectors, into lane 0."""

        def take(start: int, width: int) -> None:
            self.vector(width, lambda lane: merge(lane, [total[i64(start) + lane] for total in sums]))

        for vector in range(1, vectors):
            take(vector * lanes, lanes)
        while lanes > 1:
            half = lanes // 2
            take(lanes - half, half)
            lanes -= half


def _store(write: Write, value: Expr, values: dict) -> None:
    T.buffer_store(write.buffer, substitute(value, values), [substitute(write.indices[0], values)])


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
