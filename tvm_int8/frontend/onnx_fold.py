"""Evaluate ONNX nodes whose inputs are all constant.

The operators shape computations are made of are written out in NumPy, for every opset; the rest goes to ONNX's
reference evaluator. A node neither can evaluate stays in the graph.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from .onnx_graph import read_tensor
from .onnx_registry import Node
from .values import QuantizedConstant

_NEVER = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
_NEVER |= {"Loop", "Scan", "If", "SequenceMap", "Optional", "DequantizeLinear", "Shape", "Size"}
KEEPS_QUANTIZED = {"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"}


def evaluate(node: Node, inputs) -> list[np.ndarray] | None:
    """Outputs of `node` when all of its inputs are constant and it can be evaluated, else None.

    Parameters
    ----------
    node : Node
        The node.
    inputs : list of array, QuantizedConstant, relax.Var or None
        Its inputs.
    """
    if node.op_type in ("Constant", "ConstantOfShape") and not node.domain:
        return _constant(node, inputs)
    if node.domain or node.op_type in _NEVER or not inputs:
        return None
    if not all(value is None or isinstance(value, np.ndarray | QuantizedConstant) for value in inputs):
        return None
    if any(isinstance(value, QuantizedConstant) for value in inputs) and node.op_type in KEEPS_QUANTIZED:
        return None
    arrays = [value.dequantized() if isinstance(value, QuantizedConstant) else value for value in inputs]
    simple = _SIMPLE.get(node.op_type)
    if simple is not None:
        return [np.asarray(simple(node, *arrays))]
    return _with_reference(node, arrays)


def _constant(node: Node, inputs) -> list[np.ndarray] | None:
    if node.op_type == "ConstantOfShape":
        if not isinstance(inputs[0], np.ndarray):
            raise node.error("its shape is computed from the data", "static shapes")
        value = node.get("value")
        fill = onnx.numpy_helper.to_array(value).reshape(()) if value is not None else np.zeros((), np.float32)
        return [np.full(tuple(int(dim) for dim in inputs[0]), fill)]
    for name, value in node.attributes.items():
        if name == "value":
            return [read_tensor(value, node.where)]
        if name.startswith("value_int"):
            return [np.asarray(value, np.int64)]
        if name.startswith("value_float"):
            return [np.asarray(value, np.float32)]
    raise node.error("holds no dense numeric value", "a tensor")


def _with_reference(node: Node, arrays) -> list[np.ndarray] | None:
    try:
        session = ReferenceEvaluator(node.proto, opsets={"": node.opset})
        feeds = {name: array for name, array in zip(node.inputs, arrays, strict=True) if name}
        results = session.run(None, feeds)
    except Exception:
        return None
    return (
        [np.asarray(result) for result in results]
        if all(isinstance(r, np.ndarray | np.generic) for r in results)
        else None
    )


def axes_of(node: Node, array: np.ndarray | None, name: str = "axes") -> list[int] | None:
    """Axes given as an attribute (older opsets) or as an input (newer ones)."""
    if array is not None:
        return [int(axis) for axis in np.asarray(array).reshape(-1)]
    given = node.get(name)
    return None if given is None else [int(axis) for axis in given]


def _unsqueeze(node, x, axes=None):
    axes = axes_of(node, axes)
    rank = x.ndim + len(axes)
    axes = sorted(axis % rank for axis in axes)
    for axis in axes:
        x = np.expand_dims(x, axis)
    return x


def _squeeze(node, x, axes=None):
    axes = axes_of(node, axes)
    return np.squeeze(x, None if axes is None else tuple(axes))


def slices_of(node: Node, shape, starts=None, ends=None, axes=None, steps=None) -> list[tuple[int, int, int]]:
    """A normalised (start, stop, step) per axis, for Slice of any opset; a negative step may stop at -1."""
    starts = node.get("starts") if starts is None else starts
    ends = node.get("ends") if ends is None else ends
    axes = axes_of(node, axes) or list(range(len(starts)))
    steps = [1] * len(starts) if steps is None else steps
    ranges = [(0, dim, 1) for dim in shape]
    for axis, start, stop, step in zip(axes, starts, ends, steps, strict=True):
        ranges[axis] = slice(int(start), int(stop), int(step)).indices(shape[axis])
    return ranges


def _slice(node, x, *spec):
    ranges = slices_of(node, x.shape, *spec)
    return x[tuple(slice(start, None if stop < 0 else stop, step) for start, stop, step in ranges)]


def target_shape(node: Node, old: tuple[int, ...], shape=None) -> tuple[int, ...]:
    """Shape that Reshape gives a tensor of shape `old`, 0 and -1 resolved."""
    wanted = [int(dim) for dim in (node.get("shape") if shape is None else shape)]
    if not node.get("allowzero", 0):
        wanted = [old[axis] if dim == 0 else dim for axis, dim in enumerate(wanted)]
    if -1 in wanted:
        known = int(np.prod([dim for dim in wanted if dim != -1], dtype=np.int64))
        wanted[wanted.index(-1)] = int(np.prod(old, dtype=np.int64)) // max(known, 1)
    if np.prod(wanted, dtype=np.int64) != np.prod(old, dtype=np.int64):
        raise node.error(f"reshapes {list(old)} to {wanted}", "the same number of elements", "check the input shapes")
    return tuple(wanted)


def cast_dtype(node: Node) -> np.dtype:
    """NumPy dtype that a Cast node asks for."""
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(node.get("to")))


def _cast(node, x, *_):
    return x.astype(cast_dtype(node))


_SIMPLE: dict[str, Callable] = {
    "Identity": lambda node, x: x,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": lambda node, x, shape=None: x.reshape(target_shape(node, x.shape, shape)),
    "Transpose": lambda node, x: x.transpose(node.get("perm")),
    "Concat": lambda node, *xs: np.concatenate(xs, axis=node.get("axis", 1)),
    "Gather": lambda node, x, index: np.take(x, index, axis=node.get("axis", 0)),
    "Slice": _slice,
    "Cast": _cast,
}
