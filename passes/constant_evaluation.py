"""Evaluates one Relax operator on constants: with NumPy for the operators exporters leave behind, else with TVM itself.

NumPy answers in microseconds, where compiling an operator takes tens of milliseconds. An answer counts only when it has
the shape and dtype that TVM's type inference expects; whatever NumPy cannot do, or does differently, is compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvm_int8.passes.dataflow import Expr, const_value, constant, op_name

Evaluator = Callable[..., Any]


def evaluate(call: relax.Call) -> Expr | None:
    """The constant, or tuple of constants, a call evaluates to; None when an operand is not constant.

    Parameters
    ----------
    call : Call
        Of a pure operator, with its type inferred.
    """
    operands = [_operand(arg) for arg in call.args]
    if any(operand is None for operand in operands):
        return None
    types = list(call.ty.fields) if isinstance(call.ty, relax.TupleType) else [call.ty]
    if not all(isinstance(ty, relax.TensorType) for ty in types):
        return None
    results = None
    if op_name(call) in _NUMPY:
        with np.errstate(all="ignore"):
            results = _as_list(_NUMPY[op_name(call)](call.attrs, *operands))
        results = [_with_dtype(array, ty) for array, ty in zip(results, types, strict=True)]
    if results is None or any(not _has_type(array, ty) for array, ty in zip(results, types, strict=True)):
        results = _compiled(call)
    if results is None:
        return None
    constants = [constant(array, str(ty.dtype)) for array, ty in zip(results, types, strict=True)]
    return relax.Tuple(constants) if isinstance(call.ty, relax.TupleType) else constants[0]


def _operand(expr: Expr) -> Any:
    """A constant operand in Python: array, number, or tuple of those; None if it is not constant."""
    if isinstance(expr, relax.ShapeExpr):
        values = list(expr.values)
        return tuple(map(int, values)) if all(isinstance(v, int | tvm.tirx.IntImm) for v in values) else None
    if isinstance(expr, tvm.tirx.IntImm):
        return int(expr.value)
    if isinstance(expr, tvm.tirx.FloatImm):
        return float(expr.value)
    if isinstance(expr, relax.Tuple):
        items = tuple(_operand(item) for item in expr.fields)
        return None if any(item is None for item in items) else items
    return const_value(expr)


def _as_list(result: Any) -> list[np.ndarray]:
    return [np.asarray(array) for array in result] if isinstance(result, list) else [np.asarray(result)]


def _with_dtype(array: np.ndarray, ty: relax.TensorType) -> np.ndarray:
    """Results of reductions and of Python numbers come in NumPy's default dtypes."""
    kinds = {"f": "float", "i": "int", "u": "uint", "b": "bool"}
    same_kind = str(ty.dtype).rstrip("0123456789") == kinds.get(array.dtype.kind)
    return array.astype(str(ty.dtype)) if same_kind else array


def _has_type(array: np.ndarray, ty: relax.TensorType) -> bool:
    return str(array.dtype) == str(ty.dtype) and array.shape == tuple(int(dim) for dim in ty.shape)


def _compiled(call: relax.Call) -> list[np.ndarray] | None:
    """Evaluate through TVM's own lowering; None for operators it cannot legalise."""
    if not call.op.has_attr("FLegalize"):
        return None
    builder = relax.BlockBuilder()
    with builder.function("main", []):
        builder.emit_func_output(builder.emit(call))
    executable = tvm.compile(builder.get(), tvm.target.Target("llvm"))
    result = relax.VirtualMachine(executable, tvm.cpu())["main"]()
    return [item.numpy() for item in (result if isinstance(call.ty, relax.TupleType) else [result])]


def _axes(axis: Any) -> tuple[int, ...] | None:
    return None if axis is None else tuple(int(a) for a in axis)


def _ints(values: Any) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _elementwise(function: Callable) -> Evaluator:
    return lambda attrs, *operands: function(*operands)


def _reduction(function: Callable) -> Evaluator:
    return lambda attrs, x: function(x, axis=_axes(attrs.axis), keepdims=bool(attrs.keepdims))


def _divide(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if np.issubdtype(x.dtype, np.floating):
        return x / y
    quotient = np.floor_divide(np.abs(x), np.abs(y))  # integers divide towards zero
    return (quotient * np.sign(x) * np.sign(y)).astype(x.dtype)


def _expand_dims(attrs: Any, x: np.ndarray) -> np.ndarray:
    return np.expand_dims(x, _axes(attrs.axis))


def _strided_slice(attrs: Any, x: np.ndarray, axes: tuple, begin: tuple, end: tuple, strides: tuple = ()) -> np.ndarray:
    window = [slice(None)] * x.ndim
    for axis, first, last, step in zip(axes, begin, end, strides or (1,) * len(axes), strict=True):
        window[axis] = slice(first, last, step)
    return x[tuple(window)]


def _split(attrs: Any, x: np.ndarray) -> list[np.ndarray]:
    sections, axis = attrs.indices_or_sections, int(attrs.axis)
    if isinstance(sections, int | tvm.tirx.IntImm):
        size = -(-x.shape[axis] // int(sections))
        sections = range(size, x.shape[axis], size)
    return np.split(x, _ints(sections), axis)


def _take(attrs: Any, x: np.ndarray, indices: Any) -> np.ndarray:
    return np.take(x, indices, axis=None if attrs.axis is None else int(attrs.axis))


def _concat(attrs: Any, parts: tuple) -> np.ndarray:
    return np.concatenate([np.ravel(p) for p in parts] if attrs.axis is None else parts, int(attrs.axis or 0))


_NUMPY: dict[str, Evaluator] = {
    **{
        name: _elementwise(getattr(np, name))
        for name in (
            *("add", "subtract", "multiply", "power", "maximum", "minimum", "floor_divide", "where", "abs", "negative"),
            *("sqrt", "exp", "log", "tanh", "floor", "ceil", "square", "sign"),
            *("equal", "not_equal", "less", "less_equal", "greater", "greater_equal"),
            *("logical_and", "logical_or", "logical_not"),
        )
    },
    **{name: _reduction(getattr(np, name)) for name in ("sum", "mean", "max", "min", "prod")},
    "divide": _elementwise(_divide),
    "rsqrt": lambda attrs, x: 1 / np.sqrt(x),
    "sigmoid": lambda attrs, x: 1 / (1 + np.exp(-x)),
    "clip": lambda attrs, x, low, high: np.clip(x, low, high),
    "astype": lambda attrs, x: x.astype(str(attrs.dtype)),
    "reshape": lambda attrs, x, shape: x.reshape(shape),
    "flatten": lambda attrs, x: x.reshape(-1),
    "expand_dims": _expand_dims,
    "squeeze": lambda attrs, x: np.squeeze(x, _axes(attrs.axis)),
    "permute_dims": lambda attrs, x: np.transpose(x, _axes(attrs.axes)),
    "broadcast_to": lambda attrs, x, shape: np.broadcast_to(x, shape),
    "concat": _concat,
    "stack": lambda attrs, parts: np.stack(parts, int(attrs.axis or 0)),
    "split": _split,
    "strided_slice": _strided_slice,
    "take": _take,
    "gather_elements": lambda attrs, x, indices: np.take_along_axis(x, indices, int(attrs.axis)),
    "tile": lambda attrs, x: np.tile(x, _ints(attrs.repeats)),
    "flip": lambda attrs, x: np.flip(x, int(attrs.axis)),
    "matmul": lambda attrs, x, y: np.matmul(x, y),
    "full": lambda attrs, shape, value: np.full(shape, value),
    "full_like": lambda attrs, x, value: np.full(x.shape, value),
    "zeros": lambda attrs, shape: np.zeros(shape, str(attrs.dtype)),
    "ones": lambda attrs, shape: np.ones(shape, str(attrs.dtype)),
    "zeros_like": lambda attrs, x: np.zeros(x.shape, str(attrs.dtype or x.dtype)),
    "ones_like": lambda attrs, x: np.ones(x.shape, str(attrs.dtype or x.dtype)),
    "arange": lambda attrs, start, stop, step: np.arange(start, stop, step).astype(str(attrs.dtype)),
    "shape_to_tensor": lambda attrs, shape: np.asarray(shape, np.int64),
}
