"""What the passes ask of a single Relax expression: operator, shape, constant value, the variables in it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import tvm
from tvm import relax
from tvm.ir import GenericConst
from tvm.relax import Expr, Var

from tvm_int8.errors import ModelError


def op_name(expr: Expr) -> str:
    """Name of the operator an expression calls, without the `relax.` prefix ("nn.conv2d"); "" for anything else."""
    if isinstance(expr, relax.Call) and isinstance(expr.op, tvm.ir.Op):
        return expr.op.name.removeprefix("relax.")
    return ""


def shape_of(expr: Expr) -> tuple[int, ...]:
    """Static shape of a tensor expression.

    Raises
    ------
    ModelError
        When the expression is not a tensor, or a dimension is symbolic.
    """
    shape = getattr(expr.ty, "shape", None)
    if shape is None or not all(isinstance(dim, int | tvm.tirx.IntImm) for dim in shape):
        name = getattr(expr, "name", None) or op_name(expr) or type(expr).__name__
        raise ModelError(name, f"type {expr.ty}", "a tensor of static shape", "fix the input shapes when importing")
    return tuple(int(dim) for dim in shape)


def dtype_of(expr: Expr) -> str:
    """Element type of a tensor expression, for example "float32"."""
    return str(expr.ty.dtype)


def is_float(expr: Expr) -> bool:
    """Whether an expression is a tensor of a floating-point type."""
    return isinstance(expr.ty, relax.TensorType) and dtype_of(expr).startswith("float")


def constant(array: np.ndarray, dtype: str | None = None) -> GenericConst:
    """A Relax constant with the array's own dtype (unlike `relax.const`, which narrows int64 and float64)."""
    array = np.asarray(array)
    return relax.const(np.ascontiguousarray(array).reshape(array.shape), dtype or str(array.dtype))


def const_value(expr: Expr) -> np.ndarray | None:
    """The value of a constant as a read-only array (no copy where NumPy has the dtype), or None if it is not one."""
    if not isinstance(expr, GenericConst) or not isinstance(expr.ty, relax.TensorType):
        return None
    try:
        array = np.from_dlpack(expr.value)
    except RuntimeError:  # bfloat16, float8: DLPack types NumPy does not know
        array = expr.value.numpy()
    array.flags.writeable = False
    return array


def vars_in(expr: Expr) -> Iterator[Var]:
    """Variables an expression reads, one per use, in order."""
    stack = [expr]
    while stack:
        node = stack.pop()
        if isinstance(node, Var):
            yield node
        elif isinstance(node, relax.Call):
            stack.extend(reversed(node.args))
        elif isinstance(node, relax.Tuple):
            stack.extend(reversed(node.fields))
        elif isinstance(node, relax.TupleGetItem):
            stack.append(node.tuple_value)


def leaves(expr: Expr) -> Iterator[Expr]:
    """Fields of a (nested) tuple, or the expression itself."""
    if isinstance(expr, relax.Tuple):
        for item in expr.fields:
            yield from leaves(item)
    else:
        yield expr


def substitute(expr: Expr, mapping: dict[Var, Expr]) -> Expr:
    """`expr` with variables replaced; the same object when none of them occurs. Operands' types are not inferred."""
    if isinstance(expr, Var):
        return mapping.get(expr, expr)
    if isinstance(expr, relax.Call):
        args = [substitute(arg, mapping) for arg in expr.args]
        if all(new is old for new, old in zip(args, expr.args, strict=True)):
            return expr
        return relax.Call(expr.op, args, expr.attrs, expr.ty_args)
    if isinstance(expr, relax.Tuple):
        fields = [substitute(item, mapping) for item in expr.fields]
        return expr if all(new is old for new, old in zip(fields, expr.fields, strict=True)) else relax.Tuple(fields)
    if isinstance(expr, relax.TupleGetItem):
        source = substitute(expr.tuple_value, mapping)
        if isinstance(source, relax.Tuple):
            return source.fields[expr.index]
        return expr if source is expr.tuple_value else relax.TupleGetItem(source, expr.index)
    return expr
