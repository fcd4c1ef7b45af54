"""Stages: what a legalised TensorIR function computes, freed from its loops.

TVM's operators become PrimFuncs made of loop nests around one SBlock each.  A `Stage` holds such a block's axes and
statements; loops are written anew around it.  `read_stages` accepts what TVM's tensor expressions produce and says what
it met otherwise.

    for i, k in grid(8, 49):                         Stage  axes    i (8), k (49, reduced)
        with sblock("sum"):                                 init    s[i] = 0
            ...                                 ->          writes  s[i] = s[i] + x[i, k]
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import tvm
from tvm import tirx
from tvm.ir import TensorLoad, Var
from tvm.ir.prim import expr as prim
from tvm.s_tir.stmt import SBlock, SBlockRealize

from .island_expressions import Expr, i64, loads, substitute

_SPATIAL, _REDUCED = tirx.IterVar.DataPar, tirx.IterVar.CommReduce


class Unsupported(Exception):
    """A function that is not made of plain blocks; the text says in which way."""


@dataclass(frozen=True, eq=False)
class Axis:
    """One iteration axis, from 0 to `extent`."""

    var: Var
    extent: int
    reduced: bool = False


@dataclass(frozen=True, eq=False)
class Write:
    """buffer[indices] = value."""

    buffer: Var
    indices: tuple
    value: Expr


@dataclass(frozen=True, eq=False)
class Stage:
    """One block: for all axes, `lets` and then `writes`; `init` before the reduced axes start."""

    name: str
    axes: tuple[Axis, ...]
    writes: tuple[Write, ...]
    init: tuple[Write, ...] = ()
    lets: tuple[tuple[Var, Expr], ...] = ()

    @property
    def spatial(self) -> tuple[Axis, ...]:
        """Axes of the result."""
        return tuple(axis for axis in self.axes if not axis.reduced)

    @property
    def reduced(self) -> tuple[Axis, ...]:
        """Axes that are summed (or whatever the statement does) over."""
        return tuple(axis for axis in self.axes if axis.reduced)

    @property
    def is_reduction(self) -> bool:
        """Whether results are accumulated, if only once."""
        return bool(self.init) or bool(self.reduced)

    @property
    def iterations(self) -> int:
        """How often the statements run."""
        return math.prod(axis.extent for axis in self.axes)

    @property
    def written(self) -> tuple[Var, ...]:
        """Buffers it writes."""
        return tuple(write.buffer for write in self.writes)

    def expressions(self) -> list[Expr]:
        """Everything that is evaluated: values, and the indices they are stored at."""
        stored = [e for write in (*self.init, *self.writes) for e in (*write.indices, write.value)]
        return [value for _, value in self.lets] + stored

    def reads(self) -> list[TensorLoad]:
        """Loads of buffers this stage does not write itself."""
        return [load for e in self.expressions() for load in loads(e) if load.source not in self.written]

    def map(self, change: Callable[[Expr], Expr]) -> Stage:
        """The stage with every expression changed."""

        def changed(write):
            return Write(write.buffer, tuple(change(i) for i in write.indices), change(write.value))

        return replace(
            self,
            writes=tuple(changed(w) for w in self.writes),
            init=tuple(changed(w) for w in self.init),
            lets=tuple((var, change(value)) for var, value in self.lets),
        )

    def map_indices(self, change: Callable[[Expr], Expr]) -> Stage:
        """The stage with the indices of its writes changed."""

        def changed(write):
            return Write(write.buffer, tuple(change(i) for i in write.indices), write.value)

        return replace(self, writes=tuple(map(changed, self.writes)), init=tuple(map(changed, self.init)))

    def with_axes(self, axes, values: dict | None = None) -> Stage:
        """The stage over other axes, variables replaced by `values`."""
        changed = self.map(lambda e: substitute(e, values)) if values else self
        return replace(changed, axes=tuple(axes))


@dataclass
class Program:
    """All stages of a function in order, its parameters and its intermediate buffers."""

    params: tuple[Var, ...]
    temps: list[Var]
    stages: list[Stage] = field(default_factory=list)


def shape_of(buffer: Var) -> tuple[int, ...]:
    """The constant shape of a buffer."""
    return tuple(_constant(extent) for extent in buffer.ty.shape)


def _constant(expr: Expr) -> int:
    if not isinstance(expr, prim.IntImm):
        raise Unsupported("has dynamic shapes")
    return int(expr.value)


def _is(expr: Expr, value: int) -> bool:
    return isinstance(expr, prim.IntImm) and int(expr.value) == value


def read_stages(func: tirx.PrimFunc) -> Program:
    """The stages of a function.

    Raises
    ------
    Unsupported
        When a shape is dynamic or a block is not one plain loop nest (external code, scans, explicit loops).
    """
    root = func.body
    if not isinstance(root, SBlockRealize) or root.block.iter_vars or root.block.match_buffers:
        raise Unsupported("is not made of blocks")
    for param in func.params:
        if not hasattr(param.ty, "shape") or len(param.ty.strides):
            raise Unsupported("has scalar or strided parameters")
        shape_of(param)
    program = Program(tuple(func.params), list(root.block.alloc_buffers))
    for temp in program.temps:
        shape_of(temp)
    for nest in _statements(root.block.body):
        program.stages.append(_read_stage(nest))
    return program


def _statements(body) -> list:
    return list(body.seq) if isinstance(body, tirx.SeqStmt) else [body]


def _read_stage(nest) -> Stage:
    extents = {}
    while isinstance(nest, tirx.For):
        if nest.kind != tirx.ForKind.SERIAL or not _is(nest.min, 0):
            raise Unsupported("has explicit loops")
        extents[nest.loop_var] = _constant(nest.extent)
        nest = nest.body
    if not isinstance(nest, SBlockRealize) or not _is(nest.predicate, 1):
        raise Unsupported("has statements outside blocks")
    block = nest.block
    name = str(block.name_hint)
    if block.match_buffers or block.alloc_buffers or (not block.iter_vars and extents):
        raise Unsupported(f"has explicit loops in '{name}'")
    axes, values = _axes(block, nest.iter_values, extents)
    lets, writes = _read_writes(block.body, name)
    _, init = _read_writes(block.init, name) if block.init is not None else ((), ())
    return Stage(name, tuple(axes), writes, init, lets).with_axes(axes, values)


def _axes(block: SBlock, bindings, extents: dict) -> tuple[list[Axis], dict]:
    """Axes with fresh 64-bit variables, and what a block's own variables become; axes of one element become 0."""
    axes, values, seen = [], {}, []
    for iter_var, binding in zip(block.iter_vars, bindings, strict=True):
        extent, var = _constant(iter_var.dom.extent), iter_var.var
        if extent < 1:
            raise Unsupported("has no elements")
        if extent == 1:
            values[var] = tirx.const(0, str(var.ty.dtype))
            continue
        plain = isinstance(binding, Var) and binding not in seen and extents.get(binding) == extent
        if not plain or iter_var.iter_type not in (_SPATIAL, _REDUCED) or not _is(iter_var.dom.min, 0):
            raise Unsupported(f"iterates unusually in '{block.name_hint}'")
        seen.append(binding)
        fresh = tirx.Var(str(var.name), "int64")
        axes.append(Axis(fresh, extent, iter_var.iter_type == _REDUCED))
        dtype = str(var.ty.dtype)
        values[var] = fresh if dtype == "int64" else tirx.Cast(dtype, fresh)
    if math.prod(axis.extent for axis in axes) != math.prod(extents.values()):
        raise Unsupported(f"repeats work in '{block.name_hint}'")
    return axes, values


def _read_writes(body, name: str) -> tuple[tuple, tuple[Write, ...]]:
    lets: list[tuple[Var, Expr]] = []
    writes: list[Write] = []
    for statement in _statements(body):
        if isinstance(statement, tirx.stmt.Bind) and not writes:
            lets.append((statement.var, statement.value))
        elif isinstance(statement, tirx.BufferStore):
            writes.append(Write(statement.buffer, tuple(statement.indices), statement.value))
        else:
            raise Unsupported(f"has explicit loops or calls in '{name}'")
    return tuple(lets), tuple(writes)


def simplify(expr: Expr, axes, analyzer=None) -> Expr:
    """An index or condition in its simplest form, axes taken to stay within their extents."""
    analyzer = analyzer or tvm.sym.Analyzer()
    for axis in axes:
        analyzer.bind(axis.var, tvm.ir.Range.from_min_extent(i64(0), i64(axis.extent)))
    return analyzer.simplify(expr, 3)


def cut(stage: Stage, axis: Axis, at: int) -> tuple[Stage, Stage, Axis, Axis]:
    """The stage up to and from `at` along `axis`, and what became of the axis."""
    first, second = replace(axis, extent=at), replace(axis, extent=axis.extent - at)
    moved = {axis.var: axis.var + i64(at)}
    return (
        stage.with_axes([first if a is axis else a for a in stage.axes]),
        stage.with_axes([second if a is axis else a for a in stage.axes], moved),
        first,
        second,
    )
