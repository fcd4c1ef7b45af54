"""Walking and rewriting scalar TensorIR expressions, which TVM offers in C++ only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import Call, TensorLoad, Var
from tvm.ir.prim import expr as prim

Expr = Any

_PAIRS = (
    prim.Add, prim.Sub, prim.Mul, prim.Div, prim.Mod, prim.FloorDiv, prim.FloorMod, prim.Min, prim.Max,
    prim.EQ, prim.NE, prim.LT, prim.LE, prim.GT, prim.GE, prim.And, prim.Or,
    prim.LShift, prim.RShift, prim.BitwiseAnd, prim.BitwiseOr, prim.BitwiseXor,
)  # fmt: skip
_SINGLES = (prim.Not, prim.BitwiseNot)


def i64(value: int) -> Expr:
    """An index constant."""
    return tirx.const(int(value), "int64")


def dtype_of(expr: Expr) -> str:
    """The dtype of a scalar expression, or of a buffer's elements."""
    return str(expr.ty.dtype)


def is_call(expr: Expr, name: str) -> bool:
    """Whether `expr` calls TensorIR's operator `tirx.<name>`."""
    return isinstance(expr, Call) and getattr(expr.op, "name", "") == f"tirx.{name}"


def children(expr: Expr) -> tuple:
    """Operands of an expression; the indices of a load, but not its buffer."""
    if isinstance(expr, _PAIRS):
        return expr.a, expr.b
    if isinstance(expr, _SINGLES):
        return (expr.a,)
    if isinstance(expr, prim.Cast):
        return (expr.value,)
    if isinstance(expr, prim.Select):
        return expr.condition, expr.true_value, expr.false_value
    if isinstance(expr, prim.Let):
        return expr.value, expr.body
    if isinstance(expr, Call):
        return tuple(expr.args)
    if isinstance(expr, TensorLoad):
        return tuple(expr.indices)
    return ()


def with_children(expr: Expr, new: tuple) -> Expr:
    """The same operator over other operands."""
    if isinstance(expr, (*_PAIRS, *_SINGLES)):
        return type(expr)(*new)
    if isinstance(expr, prim.Cast):
        return prim.Cast(dtype_of_cast(expr), new[0])
    if isinstance(expr, prim.Select):
        return prim.Select(*new)
    if isinstance(expr, prim.Let):
        return prim.Let(expr.var, *new)
    if isinstance(expr, TensorLoad):
        return tirx.BufferLoad(expr.source, list(new))
    return Call(expr.op, list(new), expr.attrs, list(expr.ty_args), ret_ty=expr.ty)


def dtype_of_cast(expr: prim.Cast) -> str:
    """The target of a conversion; TensorIR spells bool `bool`."""
    return str(expr.ty.dtype)


def rewrite(expr: Expr, change: Callable[[Expr], Expr | None]) -> Expr:
    """Bottom up: replace a node by `change(node)` wherever that is not None."""
    old = children(expr)
    new = tuple(rewrite(child, change) for child in old)
    if any(a is not b for a, b in zip(new, old, strict=True)):
        expr = with_children(expr, new)
    changed = change(expr)
    return expr if changed is None else changed


def rewrite_down(expr: Expr, change: Callable[[Expr], Expr | None]) -> Expr:
    """Top down: like `rewrite`, but a replaced node's operands are not looked at."""
    changed = change(expr)
    if changed is not None:
        return changed
    old = children(expr)
    new = tuple(rewrite_down(child, change) for child in old)
    return with_children(expr, new) if any(a is not b for a, b in zip(new, old, strict=True)) else expr


def substitute(expr: Expr, values: Mapping[Var, Expr]) -> Expr:
    """Replace variables."""
    if not values:
        return expr
    return rewrite(expr, lambda node: values.get(node) if isinstance(node, Var) else None)


def nodes(expr: Expr) -> Iterator[Expr]:
    """Every node, an operator before its operands."""
    yield expr
    for child in children(expr):
        yield from nodes(child)


def loads(expr: Expr) -> list[TensorLoad]:
    """Every load in an expression, those in other loads' indices included."""
    return [node for node in nodes(expr) if isinstance(node, TensorLoad)]


def uses(expr: Expr, variables: Iterable[Var]) -> bool:
    """Whether one of `variables` occurs."""
    wanted = set(variables)
    return any(isinstance(node, Var) and node in wanted for node in nodes(expr))


def same(a: Expr, b: Expr) -> bool:
    """Structural equality."""
    return tvm_ffi.structural_equal(a, b)


def stride(index: Expr, variable: Var) -> int | None:
    """The factor of `variable` in a linear flat index; None when it is not a constant."""
    if not uses(index, [variable]):
        return 0
    found = tvm.sym.detect_linear_equation(index, [variable])
    return int(found[0].value) if len(found) == 2 and isinstance(found[0], prim.IntImm) else None
