"""PlanMemory: one arena for all activations, every tensor at a place of its own in it while it lives.

    alloc = builtin.alloc_tensor((1, 4, 56, 56, 16), "uint8")      arena = memory.alloc_storage(1204224)
    conv2d(x, weight, alloc)                                  ->   alloc = memory.alloc_tensor(arena, 200704, ...)
    c = tvm_int8.overlay(alloc, b, offsets=(0, 200704))            conv2d(x, weight, alloc)
                                                                   c = memory.alloc_tensor(arena, 200704, ...)

Requires   CallTIRRewrite; static shapes.
Ensures    tensors that do not live at the same time share memory; overlays lie where their parts do; what the function
           returns, or a function outside of the module sees, has memory of its own.  Attribute `MEMORY` of `main` holds
           the bytes of the arena and of the rest.
Method     the largest piece first, at the lowest place that is free while it lives: greedy by size, Pisarchyk & Lee
           2020 (arXiv:2001.03288).  TVM's StaticPlanBlockMemory shares whole allocations of one dtype, and cannot let
           one tensor lie inside another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax

from tvm_int8.overlay_op import is_overlay, offsets_of

from .dataflow import Dataflow
from .expressions import Expr, Var, dtype_of, leaves, op_name, shape_of
from .shared_memory import Piece, SharedMemory

MEMORY = "tvm_int8.memory"
"""Attribute of `main`: [bytes of the arena, bytes of all other allocations]."""
ALIGNMENT = 64


@tvm.transform.module_pass(opt_level=0, name="PlanMemory")
class PlanMemory:
    """Decide where every tensor of `main` lies."""

    def transform_module(self, mod: tvm.IRModule, _ctx) -> tvm.IRModule:
        """Return the module with explicit memory."""
        out = mod.clone()
        out.update_func(mod.get_global_var("main"), _Plan(mod["main"]).function())
        return out


@dataclass(eq=False)
class _Life:
    """From which binding to which a piece is in use, what it spans, and where it goes (None: not in the arena)."""

    begin: int
    end: int
    low: int
    size: int
    place: int | None = None


class _Plan:
    def __init__(self, function: relax.Function):
        self.flow = Dataflow(function)
        self.memory = SharedMemory()
        self.same: dict[Var, Expr] = {}  # variable -> what it is another name for
        self.uses: dict[Var, list[int]] = {}  # allocation or overlay -> bindings that use it
        self.escaping: set[Var] = set()
        for index, binding in enumerate(self.flow.bindings):
            self._read(index, binding.var, binding.value)
        for expr in self.flow.outputs:
            self.escaping.update(self._tensors(expr))
        self.lives = {piece: self._life(piece) for piece in self.memory.pieces()}
        self.arena = _place([life for piece, life in self.lives.items() if not self._escapes(piece)])

    def _tensors(self, expr: Expr) -> list[Var]:
        """The allocations and overlays an expression stands for."""
        found = []
        for leaf in leaves(expr):
            value = self.same.get(leaf, leaf) if isinstance(leaf, Var) else leaf
            if value is not leaf:
                found += self._tensors(value)
            elif isinstance(leaf, relax.TupleGetItem):
                source = self._resolved(leaf.tuple_value)
                found += self._tensors(source.fields[leaf.index] if isinstance(source, relax.Tuple) else source)
            elif leaf in self.memory:
                found.append(leaf)
        return found

    def _resolved(self, expr: Expr) -> Expr:
        while isinstance(expr, Var) and expr in self.same:
            expr = self.same[expr]
        return expr

    def _read(self, index: int, var: Var, value: Expr) -> None:
        """Note what a binding makes and uses."""
        if not isinstance(value, relax.Call):
            self.same[var] = value
            return
        if op_name(value) == "builtin.alloc_tensor":
            self.memory.write(var, _bytes(var))
            self.uses[var] = []
            return
        arguments = [tensor for argument in value.args for tensor in self._tensors(argument)]
        if is_overlay(value):
            inputs = [tensor for argument in value.args for tensor in self._tensors(argument)]
            self.memory.overlay(var, inputs, offsets_of(value))
            self.uses[var] = [index]
        elif op_name(value) == "reshape":
            self.same[var] = value.args[0]
        elif not isinstance(value.op, tvm.ir.GlobalVar):
            self.escaping.update(arguments)
        for tensor in arguments:
            self.uses[tensor].append(index)

    def _escapes(self, piece: Piece) -> bool:
        return any(var in self.escaping for var in piece.offsets)

    def _life(self, piece: Piece) -> _Life:
        uses = [index for var in piece.offsets for index in self.uses[var]]
        low = min(piece.offsets.values())
        high = max(offset + _bytes(var) for var, offset in piece.offsets.items())
        return _Life(min(uses, default=0), max(uses, default=0), low, high - low)

    def function(self) -> relax.Function:
        """`main` with memory allocated."""
        builder = relax.BlockBuilder()
        arena = relax.Var("arena", relax.AnyType())
        bindings, others = [], 0
        if self.arena:
            bindings.append(relax.VarBinding(arena, builder.normalize(_storage(self.arena))))
        own: dict[Piece, Var] = {}
        for binding in self.flow.bindings:
            var, value = binding.var, binding.value
            if var in self.memory:
                piece = self.memory.piece(var)
                life = self.lives[piece]
                if life.place is None and piece not in own:
                    own[piece] = relax.Var(f"storage{len(own)}", relax.AnyType())
                    bindings.append(relax.VarBinding(own[piece], builder.normalize(_storage(life.size))))
                    others += life.size
                offset = self.memory.offset(var) - life.low + (life.place or 0)
                value = builder.normalize(_tensor(own.get(piece, arena), offset, var))
            bindings.append(relax.VarBinding(var, value))
        old = self.flow.function
        body = builder.normalize(relax.SeqExpr([relax.BindingBlock(bindings)], old.body.body))
        function = relax.Function(old.params, body, old.ret_ty, old.is_pure, old.attrs)
        return function.with_attr(MEMORY, [self.arena, others])


def _bytes(var: Var) -> int:
    return math.prod(shape_of(var)) * np.dtype(dtype_of(var)).itemsize


def _storage(size: int) -> relax.Call:
    return relax.op.memory.alloc_storage(relax.ShapeExpr([size]), 0, "global", "uint8")


def _tensor(storage: Var, offset: int, var: Var) -> relax.Call:
    return relax.op.memory.alloc_tensor(storage, offset, relax.ShapeExpr(shape_of(var)), dtype_of(var))


def _place(lives: Sequence[_Life]) -> int:
    """Give every life its place in one arena; returns the arena's bytes."""
    placed: list[_Life] = []
    for life in sorted(lives, key=lambda life: (-life.size, life.begin)):
        neighbours = sorted(
            (other.place, other.place + other.size)
            for other in placed
            if other.begin <= life.end and life.begin <= other.end
        )
        place = 0
        for begin, end in neighbours:
            if place + life.size <= begin:
                break
            place = max(place, -(-end // ALIGNMENT) * ALIGNMENT)
        life.place = place
        placed.append(life)
    return max((life.place + life.size for life in placed), default=0)
