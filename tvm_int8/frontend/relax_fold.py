"""Evaluate Relax calls whose tensor arguments are all constant, in NumPy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tvm import relax

from .emitter import shape_of

_ELEMENTWISE: dict[str, Callable] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "power": np.power,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "negative": np.negative,
    "abs": np.abs,
    "exp": np.exp,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
}
_TAKES_OUTPUT_SHAPE = {"reshape", "expand_dims", "squeeze", "flatten"}


def evaluate_call(call, arrays: list[np.ndarray], out_type) -> np.ndarray | None:
    """Value of `call`, or None when it is not one of the few operators weights are prepared with.

    Parameters
    ----------
    call : Call
        A call of a Relax operator.
    arrays : list of numpy.ndarray
        Its tensor arguments.
    out_type : relax.TensorType
        The inferred type of its result.
    """
    name = call.op.name.removeprefix("relax.")
    dtype = str(out_type.dtype)
    if name in _ELEMENTWISE:
        return np.asarray(_ELEMENTWISE[name](*arrays)).astype(arrays[0].dtype)
    if name == "divide" and arrays[0].dtype.kind == "f":
        return np.divide(*arrays).astype(arrays[0].dtype)
    if name in _TAKES_OUTPUT_SHAPE:
        return arrays[0].reshape(tuple(int(dim) for dim in out_type.shape))
    if name == "permute_dims":
        axes = call.attrs.axes
        return np.ascontiguousarray(arrays[0].transpose(None if axes is None else [int(axis) for axis in axes]))
    if name == "broadcast_to":
        return np.ascontiguousarray(np.broadcast_to(arrays[0], tuple(int(dim) for dim in out_type.shape)))
    if name == "tile":
        return np.tile(arrays[0], [int(count) for count in call.attrs.repeats])
    if name == "astype":
        return arrays[0].astype(dtype)
    if name == "concat":
        return np.concatenate(arrays, int(call.attrs.axis or 0))
    if name in ("zeros", "ones"):
        return np.full(tuple(int(dim) for dim in out_type.shape), 0 if name == "zeros" else 1, dtype)
    if name == "arange":
        return np.arange(*(arg.value for arg in call.args)).astype(dtype)
    if name == "full":
        return np.full(tuple(int(dim) for dim in out_type.shape), arrays[0], dtype)
    return None


def static_shape(expr: relax.Expr) -> tuple[int, ...]:
    """Shape of a tensor expression or of a shape expression."""
    return tuple(int(dim) for dim in expr.values) if isinstance(expr, relax.ShapeExpr) else shape_of(expr)
