"""Float islands: schedules for whatever TVM legalises and this package has no kernel for.

Algorithm   the function's own (`island_stages`), with intermediate results inlined, transcendental functions as
            polynomials, and conditions that depend on the lane decided by splitting the domain.
Schedule    stages that can share a parallel loop do (`island_regions`); each is a vector loop (`island_kernels`).
            Work that is not worth a second thread keeps its parallel loop, of one iteration, which starts none.

Evidence    Zen 5, two threads, Nov 2026, us (NumPy in brackets): softmax [1, 1000] 2.0 (4.6), one task; softmax
            [8, 197, 197] 74 (380); LRN of five channels [1, 96, 27, 27] 13 (158); layer_norm [1, 197, 384] 7 (114);
            NCHW to NHWC [1, 255, 20, 20] 13 (30); matmul [8, 197, 64] x [8, 64, 197] 103, 386 GFLOP/s (262).

Functions that are not made of plain blocks (sorting, scans, scatter) stay as they are and say so in the attribute
`tvm_int8.unscheduled`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tvm import tirx
from tvm.ir import TensorLoad, Var
from tvm.tirx.script import builder as T

from .cpu import Cpu
from .island_expressions import Expr, i64, rewrite_down, substitute
from .island_inline import inline, split_conditions, split_reduction, weight
from .island_kernels import Emitter
from .island_loops import merge_axes, nest, simplify_indices
from .island_math import vectorizable
from .island_regions import Region, choose_region, groups, local_buffer, passed, without_axes
from .island_stages import Axis, Program, Stage, Unsupported, Write, read_stages, shape_of, simplify
from .lanes import PARALLEL_ELEMENTS
from .vector import KernelBuilder

ISLAND, UNSCHEDULED = "tvm_int8.island", "tvm_int8.unscheduled"
_TASKS_PER_THREAD = 8


def schedule_island(func: tirx.PrimFunc, name: str, cpu: Cpu) -> tirx.PrimFunc:
    """Give one legalised function loops for threads and vectors.

    Parameters
    ----------
    func : PrimFunc
        A function as `relax.transform.LegalizeOps` leaves it: blocks in serial loops, static shapes.
    name : str
        Its name in the module.

    Returns
    -------
    PrimFunc
        The same parameters and results (sums are formed in another order, transcendental functions to 3e-7).  Attribute
        `tvm_int8.island` when it was scheduled, `tvm_int8.unscheduled` with the reason when it was not.
    """
    try:
        return schedule_program(read_stages(func), name, cpu)
    except Unsupported as reason:
        return func.with_attr(UNSCHEDULED, str(reason))
    except Exception as error:  # TVM raises whatever it likes; an island must never stop a compilation
        return func.with_attr(UNSCHEDULED, f"failed with {type(error).__name__}: {error}")


def schedule_program(program: Program, name: str, cpu: Cpu) -> tirx.PrimFunc:
    """The scheduled function of a program; `tvm_int8.island` names its stages."""
    names = "+".join(dict.fromkeys(stage.name for stage in program.stages))
    island = _Island(program, cpu)
    func = island.build(name).without_attr("tvm_int8.kernel").with_attr({"global_symbol": name, ISLAND: names})
    return func if island.emitter.vectors else func.with_attr(UNSCHEDULED, "has nothing for a second lane to do")


@dataclass(frozen=True)
class _Place:
    """A buffer as a line of memory: what an index of each dimension is worth there, and what it starts from."""

    line: Var
    strides: tuple[int, ...]
    origin: dict[int, Expr]

    def index(self, indices: Sequence[Expr]) -> Expr:
        total = i64(0)
        for dim, (index, step) in enumerate(zip(indices, self.strides, strict=True)):
            if not step:
                continue
            wide = index if str(index.ty.dtype) == "int64" else tirx.Cast("int64", index)
            total = total + (wide - self.origin[dim] if dim in self.origin else wide) * i64(step)
        return total


def _place(line: Var, shape: Sequence[int], origin: dict[int, Expr] | None = None) -> _Place:
    """Row-major strides; dimensions of one element have none."""
    strides = [math.prod(shape[d + 1 :]) if shape[d] > 1 else 0 for d in range(len(shape))]
    return _Place(line, tuple(strides), origin or {})


class _Island:
    def __init__(self, program: Program, cpu: Cpu):
        self.program, self.emitter = program, Emitter(cpu)
        self.tasks = max(2, _TASKS_PER_THREAD * cpu.threads)

    def build(self, name: str) -> tirx.PrimFunc:
        inline(self.program)
        stages = []
        for stage in self.program.stages:
            for part in split_conditions(stage):
                parts, partial = split_reduction(part, self.tasks)
                stages += parts
                self.program.temps += partial
        shapes = [(f"p{i}", shape_of(p), str(p.ty.dtype)) for i, p in enumerate(self.program.params)]
        with KernelBuilder(name) as k:
            lines = k.arguments(*shapes)
            places = {p: _place(line, shape_of(p)) for p, line in zip(self.program.params, lines, strict=True)}
            found = groups(stages, self.tasks, self._is_small)
            for temp in self.program.temps:
                if sum(any(temp in (*s.written, *(r.source for r in s.reads())) for s in group) for group in found) > 1:
                    places[temp] = _allocate(temp)
            for group in found:
                self._emit_group(group, dict(places))
        return k.func

    def _is_small(self, stages: Sequence[Stage]) -> bool:
        return sum(stage.iterations * weight(stage) for stage in stages) < 4 * PARALLEL_ELEMENTS

    def _emit_group(self, stages: list[Stage], places: dict[Var, _Place]) -> None:
        """All loops of one group."""
        if len(stages) == 1:
            self._emit(stages[0], places, 1 if self._is_small(stages) else self.tasks)
            return
        if self._is_small(stages):
            with nest([1], 1):
                self._emit_all(stages, Region(()), 0, {}, places)
            return
        region = choose_region(stages, self.tasks)
        extents = [shared.extent for shared in region.single]
        if region.chunked is None:
            with nest([*extents, 1], self.tasks) as found:
                self._emit_all(stages, region, 0, _values(region, found), places)
            return
        chunks, rest = divmod(region.chunked.extent, region.chunk)
        with nest([*extents, chunks, 1], math.prod(extents) * chunks) as found:
            values = _values(region, found)
            self._emit_all(stages, region, region.chunk, values, places, found[-2] * i64(region.chunk))
        if rest:
            with nest([*extents, 1], self.tasks) as found:
                self._emit_all(stages, region, rest, _values(region, found), places, i64(chunks * region.chunk))

    def _emit_all(self, stages, region: Region, chunk: int, values, places, begin: Expr | None = None) -> None:
        """The stages one after the other inside a region's loop, with buffers of their own for what they pass on."""
        places = dict(places)
        for buffer in dict.fromkeys([*passed(stages), *(b for s in stages for b in s.written)]):
            if buffer in places:
                continue
            local = local_buffer(buffer, region, chunk)
            origin = {}
            if region.chunked is not None and local is not buffer:
                origin[region.chunked.dims[buffer]] = begin
            places[buffer] = replace(_allocate(local), origin=origin)
        for number, stage in enumerate(stages):
            inner = without_axes(stage, [shared.axes[number] for shared in region.single])
            if begin is not None and region.chunked is not None:
                inner = _chunk(inner, region.chunked.axes[number], chunk, begin)
            self._emit(inner, places, 0, values)

    def _emit(self, stage: Stage, places: dict[Var, _Place], tasks: int, values: dict | None = None) -> None:
        self.emitter.tasks = tasks
        self.emitter.overlap = all(load.source in self.program.params for load in stage.reads())
        self.emitter.emit(merge_axes(_flat(stage.map(vectorizable), places, values or {})))


def _values(region: Region, found: Sequence[Expr]) -> dict[Var, Expr]:
    """What the variables of a region's axes are, for all stages."""
    return {axis.var: index for shared, index in zip(region.single, found, strict=False) for axis in shared.axes}


def _allocate(buffer: Var) -> _Place:
    shape = shape_of(buffer)
    return _place(T.alloc_buffer((math.prod(shape),), str(buffer.ty.dtype), scope="global"), shape)


def _chunk(stage: Stage, axis: Axis, extent: int, begin: Expr) -> Stage:
    inner = replace(axis, var=tirx.Var(str(axis.var.name), "int64"), extent=extent)
    return stage.with_axes([inner if a == axis else a for a in stage.axes], {axis.var: begin + inner.var})


def _flat(stage: Stage, places: dict[Var, _Place], values: dict[Var, Expr]) -> Stage:
    """The stage over lines of memory, with simple indices."""

    def load(node):
        if not isinstance(node, TensorLoad):
            return None
        place = places[node.source]
        return tirx.BufferLoad(place.line, [place.index([rewrite_down(i, load) for i in node.indices])])

    def change(expr):
        return simplify_indices(substitute(rewrite_down(expr, load), values), stage.axes)

    def write(old):
        place = places[old.buffer]
        return Write(place.line, (change(place.index(old.indices)),), change(old.value))

    return replace(
        stage,
        writes=tuple(write(w) for w in stage.writes),
        init=tuple(write(w) for w in stage.init),
        lets=tuple((var, change(value)) for var, value in stage.lets),
    ).map_indices(lambda index: simplify(index, stage.axes))
