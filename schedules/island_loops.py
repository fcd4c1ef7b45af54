"""Loops around flat stages: which axis fills the lanes of a vector, and how the other iterations are shared out.

Lanes     the axis along which memory is contiguous for most operands; its last vector overlaps the one before, so that
          no iteration needs a mask and none is left over.
Tasks     the outermost loops, fused until there are enough iterations for all threads.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tvm import tirx
from tvm.ir import TensorLoad, Var
from tvm.ir.prim import expr as prim
from tvm.tirx.script import builder as T

from .island_expressions import Expr, children, i64, is_call, loads, nodes, rewrite_down, stride, uses
from .island_stages import Axis, Stage, shape_of, simplify
from .vector import let

#: Cost of reading (writing) one vector, by the distance of its elements; a contiguous vector costs 1.
_SAME, _SCATTERED = 0.25, 12.0


@dataclass(frozen=True)
class Lanes:
    """`tiles` vectors of `lanes` elements along `axis`; the last one overlaps when they do not divide the extent."""

    axis: Axis
    lanes: int

    @property
    def tiles(self) -> int:
        """Vectors along the axis."""
        return -(-self.axis.extent // self.lanes)

    def start(self, tile: Expr) -> Expr:
        """First element of a tile."""
        first = tile * i64(self.lanes)
        return first if self.axis.extent % self.lanes == 0 else T.min(first, i64(self.axis.extent - self.lanes))


def element_bytes(dtype: str) -> int:
    """Bytes of one element in memory."""
    digits = "".join(c for c in dtype if c.isdigit())
    return max(1, int(digits) // 8) if digits else 1


def lane_count(stage: Stage) -> int:
    """Elements of a 64-byte vector of the widest type in a stage; 16 for 64-bit types, two registers then."""
    kinds = [str(node.ty.dtype) for e in stage.expressions() for node in nodes(e) if _is_data(node)]
    widest = max(element_bytes(kind) for kind in [*kinds, *(str(w.buffer.ty.dtype) for w in stage.writes)])
    return {1: 64, 2: 32}.get(widest, 16)


def _is_data(node: Expr) -> bool:
    return isinstance(node, (TensorLoad, prim.Cast))


def outside_indices(expr: Expr) -> Iterator[Expr]:
    """Nodes of an expression, the indices of loads left out."""
    yield expr
    if not isinstance(expr, TensorLoad):
        for child in children(expr):
            yield from outside_indices(child)


def indices(stage: Stage) -> list[Expr]:
    """Every flat index a stage reads or writes at."""
    read = [load.indices[0] for e in stage.expressions() for load in loads(e)]
    return read + [write.indices[0] for write in stage.writes]


def merge_axes(stage: Stage) -> Stage:
    """One axis for two where all operands are contiguous across both: [8, 7, 7] -> [8, 49] -> [392]."""
    merged = True
    while merged:
        merged = False
        for group in (stage.spatial, stage.reduced):
            for outer, inner in itertools.pairwise(group):
                if _mergeable(stage, outer, inner):
                    stage, merged = _merge(stage, outer, inner), True
                    break
            if merged:
                break
    return stage


def _mergeable(stage: Stage, outer: Axis, inner: Axis) -> bool:
    values = [value for _, value in stage.lets] + [w.value for w in (*stage.init, *stage.writes)]
    if any(node in (outer.var, inner.var) for e in values for node in outside_indices(e) if isinstance(node, Var)):
        return False
    for index in indices(stage):
        a, b = stride(index, outer.var), stride(index, inner.var)
        if a is None or b is None or a != b * inner.extent:
            return False
    return True


def _merge(stage: Stage, outer: Axis, inner: Axis) -> Stage:
    both = Axis(inner.var, outer.extent * inner.extent, inner.reduced)
    axes = [both if axis is inner else axis for axis in stage.axes if axis is not outer]
    moved = stage.with_axes(axes, {outer.var: i64(0)}).map(lambda e: simplify_indices(e, axes))
    return moved.map_indices(lambda index: simplify(index, axes))


def simplify_indices(expr: Expr, axes: Sequence[Axis]) -> Expr:
    """Simplify the indices of all loads (and nothing else: floating-point arithmetic stays as written)."""

    def change(node):
        if not isinstance(node, TensorLoad):
            return None
        return tirx.BufferLoad(node.source, [simplify(simplify_indices(i, axes), axes) for i in node.indices])

    return rewrite_down(expr, change)


def access_cost(found: Sequence[Expr], variable: Var) -> float:
    """Cost of one vector along `variable` of every access in `found`."""
    kinds: dict[int | None, float] = {0: _SAME, 1: 1.0}
    return sum((kinds.get(stride(index, variable), _SCATTERED) for index in found), 0.0)


def waste(extent: int, lanes: int) -> float:
    """Cost of vectors per useful element."""
    lanes = min(lanes, extent)
    return -(-extent // lanes) / extent


def choose_lanes(stage: Stage, axes: Sequence[Axis], store_weight: float = 1.5) -> tuple[Lanes | None, float]:
    """The spatial axis whose vectors are cheapest, and their cost per iteration; innermost axes win ties."""
    count, best, lowest = lane_count(stage), None, math.inf
    read = [load.indices[0] for e in stage.expressions() for load in loads(e) if load.source not in stage.written]
    stored = [write.indices[0] for write in stage.writes]
    for axis in reversed(axes):
        vector = access_cost(read, axis.var) + store_weight * access_cost(stored, axis.var) + 0.5
        cost = vector * waste(axis.extent, count)
        if cost < lowest:
            best, lowest = Lanes(axis, min(count, axis.extent)), cost
    return best, lowest


@contextmanager
def nest(extents: Sequence[int], tasks: int) -> Iterator[list[Expr]]:
    """Loops over `extents`, outermost first; yields their indices.

    tasks : 0 inside a parallel loop: all serial.  1: one task (a parallel loop of one iteration starts no thread).
        More: loops are fused from the outermost one until there are so many tasks; the last loop may be cut in pieces,
        of at least two iterations each, so that an iteration that overlaps its predecessor shares its task.
    """
    with ExitStack() as stack:
        serial = lambda extent: stack.enter_context(T.serial(i64(extent))) if extent != 1 else i64(0)  # noqa: E731
        if tasks <= 1:
            if tasks:
                stack.enter_context(T.parallel(i64(1)))
            yield [serial(extent) for extent in extents]
            return
        count, fused = 0, 1
        while count < len(extents) - 1 and fused < tasks:
            fused, count = fused * extents[count], count + 1
        pieces = 1
        if count == len(extents) - 1 and fused < tasks:
            pieces = max(1, min(extents[-1] // 2, -(-tasks // fused)))
        task = stack.enter_context(T.parallel(i64(fused * pieces)))
        found = _digits(task if pieces == 1 else let(task // i64(pieces)), extents[:count])
        found += [serial(extent) for extent in extents[count:-1]]
        if pieces == 1:
            yield [*found, serial(extents[-1])]
            return
        each, piece = extents[-1] // pieces, let(task % i64(pieces))
        last = extents[-1] - (pieces - 1) * each
        length = i64(each) if each == last else let(prim.Select(prim.EQ(piece, i64(pieces - 1)), i64(last), i64(each)))
        yield [*found, piece * i64(each) + stack.enter_context(T.serial(length))]


def _digits(number: Expr, extents: Sequence[int]) -> list[Expr]:
    """The indices of fused loops."""
    found, below = [], math.prod(extents)
    for extent in extents:
        below //= extent
        digit = number if below == 1 else number // i64(below)
        whole = below * extent == math.prod(extents)
        found.append(let(digit if whole else digit % i64(extent)) if extent > 1 else i64(0))
    return found


def lanewise(expr: Expr, variable: Var) -> Expr:
    """`if_then_else` that depends on the lane as a Select of both branches, with loads kept inside their buffers."""

    def safe(node):
        if not isinstance(node, TensorLoad):
            return None
        end = shape_of(node.source)[0] - 1
        inside = [prim.Min(prim.Max(rewrite_down(i, safe), i64(0)), i64(end)) for i in node.indices]
        return tirx.BufferLoad(node.source, inside)

    def change(node):
        if not is_call(node, "if_then_else") or not uses(node.args[0], [variable]):
            return None
        branches = [rewrite_down(rewrite_down(branch, change), safe) for branch in node.args[1:]]
        return prim.Select(rewrite_down(node.args[0], change), *branches)

    return rewrite_down(expr, change)
