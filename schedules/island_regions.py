"""Stages that share a parallel loop, so that what passes between them stays in the cache of one core.

    m[i] = max_k x[i, k]                           for i in parallel(64):
    e[i, k] = exp(x[i, k] - m[i])        ->            m = max_k x[i, k]
    s[i] = sum_k e[i, k]                               e[k] = exp(x[i, k] - m)       e has 1000 elements, not 64000
    y[i, k] = e[i, k] / s[i]                           s = sum_k e[k]
                                                       y[i, k] = e[k] / s

A region's loop runs over `Shared` axes: every stage has such an axis, and every buffer that passes between stages is
written and read at its value.  The innermost axis of the result is cut in chunks instead, so that vectors remain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tvm import tirx
from tvm.ir import Var

from .island_expressions import loads
from .island_stages import Axis, Stage, shape_of

_CHUNK = 256  # iterations of a task, at least
_ROUND = 16


@dataclass(frozen=True)
class Shared:
    """One axis that all stages of a group have: each stage's own axis, and the dimension of each buffer it indexes."""

    extent: int
    axes: tuple[Axis, ...]  # one per stage
    dims: dict[Var, int]
    grain: int = 1  # elements of a chunk, at least; 1 for axes that are not innermost

    @property
    def tasks(self) -> int:
        """Tasks this axis is good for."""
        return max(1, self.extent // self.grain)


def passed(stages: Sequence[Stage]) -> list[Var]:
    """Buffers that a stage writes and a later one reads."""
    found = []
    for i, stage in enumerate(stages):
        later = {load.source for other in stages[i + 1 :] for load in other.reads()}
        found += [buffer for buffer in stage.written if buffer in later]
    return found


def shared_axes(stages: Sequence[Stage]) -> list[Shared]:
    """The axes a loop around all `stages` can have, in the order of the last stage's axes."""
    buffers = passed(stages)
    found = []
    for axis in stages[-1].spatial:
        shared = _shared(stages, buffers, axis)
        if shared is not None:
            found.append(shared)
    if found and found[-1].axes[-1] is stages[-1].spatial[-1]:
        found[-1] = replace(found[-1], grain=_grain(stages))
    return found


def _grain(stages: Sequence[Stage]) -> int:
    """Elements of the result's innermost axis that are worth a task: fewer when each one takes long."""
    per_element = sum(stage.iterations for stage in stages) / math.prod(axis.extent for axis in stages[-1].spatial)
    return max(1, -(-_CHUNK // int(per_element) // _ROUND)) * _ROUND


def _shared(stages: Sequence[Stage], buffers: Sequence[Var], last: Axis) -> Shared | None:
    """Follow `last`, an axis of the last stage, through the buffers; None where that ends or contradicts itself."""
    axes: dict[int, Axis] = {len(stages) - 1: last}
    dims: dict[Var, int] = {}
    changed = True
    while changed:
        changed = False
        for number, stage in enumerate(stages):
            for buffer, indices in _accesses(stage, buffers):
                mine = axes.get(number)
                if mine is not None and buffer not in dims:
                    at = [d for d, index in enumerate(indices) if _is_var(index, mine.var)]
                    if len(at) != 1:
                        return None
                    dims[buffer], changed = at[0], True
                if buffer in dims:
                    axis = next((a for a in stage.spatial if _is_var(indices[dims[buffer]], a.var)), None)
                    if axis is None or axis.extent != last.extent or (mine is not None and mine is not axis):
                        return None
                    if mine is None:
                        axes[number], changed = axis, True
    if len(axes) != len(stages) or len(dims) != len(set(buffers)):
        return None
    for number, stage in enumerate(stages):  # also what is written and never read: an argmax's maxima
        for write in stage.writes:
            at = [d for d, index in enumerate(write.indices) if _is_var(index, axes[number].var)]
            if write.buffer not in dims and len(at) == 1:
                dims[write.buffer] = at[0]
    return Shared(last.extent, tuple(axes[i] for i in range(len(stages))), dims)


def _accesses(stage: Stage, buffers: Sequence[Var]) -> list[tuple[Var, tuple]]:
    wanted = set(buffers)
    found = [(load.source, tuple(load.indices)) for e in stage.expressions() for load in loads(e)]
    found += [(write.buffer, write.indices) for write in stage.writes]
    return [(buffer, indices) for buffer, indices in found if buffer in wanted]


def _is_var(index, var: Var) -> bool:
    return isinstance(index, Var) and index == var


def groups(stages: Sequence[Stage], tasks: int, is_small) -> list[list[Stage]]:
    """Consecutive stages that share a loop, as many as can without losing tasks that are needed."""
    if is_small(stages):
        return [list(stages)]
    found: list[list[Stage]] = []
    for stage in stages:
        if found and _joins(found[-1], stage, tasks, is_small):
            found[-1].append(stage)
        else:
            found.append([stage])
    return found


def _joins(group: Sequence[Stage], stage: Stage, tasks: int, is_small) -> bool:
    if not set(passed([*group, stage])) - set(passed(group)):
        return False
    together = count_tasks([*group, stage])
    alone = max(1 if is_small(part) else count_tasks(part) for part in (group, [stage]))
    return together >= min(tasks, alone)


def count_tasks(stages: Sequence[Stage]) -> int:
    """Iterations a parallel loop around `stages` can have."""
    if len(stages) > 1:
        return math.prod(shared.tasks for shared in shared_axes(stages))
    extents = [axis.extent for axis in stages[0].spatial]
    if stages[0].is_reduction or not extents:
        return math.prod(extents)
    return math.prod(extents[:-1]) * max(1, extents[-1] // _CHUNK)


@dataclass(frozen=True)
class Region:
    """The loop around a group: axes that run one by one, and possibly one that runs in chunks of `chunk`."""

    single: tuple[Shared, ...]
    chunked: Shared | None = None
    chunk: int = 0

    @property
    def shared(self) -> tuple[Shared, ...]:
        """All of its axes."""
        return self.single if self.chunked is None else (*self.single, self.chunked)


def choose_region(stages: Sequence[Stage], tasks: int) -> Region:
    """The outermost shared axes that give `tasks` tasks; the innermost one in chunks when they do not."""
    candidates = shared_axes(stages)
    single, count = [], 1
    for shared in candidates:
        if shared.grain == 1 and count < tasks:
            single.append(shared)
            count *= shared.extent
    last = next((shared for shared in candidates if shared.grain > 1), None)
    if last is None or count >= tasks:
        return Region(tuple(single))
    chunk = -(-last.extent * count // tasks)
    chunk = max(last.grain, -(-chunk // _ROUND) * _ROUND)
    return Region(tuple(single), last, chunk) if chunk < last.extent else Region(tuple(single))


def local_buffer(buffer: Var, region: Region, chunk: int) -> Var:
    """The part of a buffer that one task needs; all of it when tasks cannot tell their parts."""
    shape = list(shape_of(buffer))
    if not all(buffer in shared.dims for shared in region.shared):
        return buffer
    if region.chunked is not None:
        shape[region.chunked.dims[buffer]] = chunk
    for shared in region.single:
        shape[shared.dims[buffer]] = 1
    return tirx.decl_buffer(shape, str(buffer.ty.dtype), str(buffer.name))


def without_axes(stage: Stage, gone: Sequence[Axis]) -> Stage:
    """The stage inside loops over some of its axes, whose variables stay free."""
    return replace(stage, axes=tuple(axis for axis in stage.axes if axis not in gone))
