"""Operators that move data."""

from __future__ import annotations

import numpy as np
from tvm import relax

from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.expressions import Expr, Var, const_value, op_name, shape_of

from .quantize import behind_idle_pair
from .registry import relax_op
from .writer import OnnxWriter

_DEPTH_TO_SPACE: dict[tuple[int, ...], str] = {(0, 1, 4, 2, 5, 3): "CRD", (0, 3, 4, 1, 5, 2): "DCR"}
"""Axes of the transpose in the middle to ONNX's name of the order."""


def _int64(values) -> np.ndarray:
    return np.asarray([int(value) for value in values], np.int64)


@relax_op("reshape")
def reshape(out: OnnxWriter, call: relax.Call) -> None:
    """Reshape, or the DepthToSpace that it ends."""
    found = _depth_to_space(out.flow, call)
    if found is None:
        out.emit("Reshape", call.args[0], out.constant(_int64(shape_of(call)), "shape"))
    else:
        source, factor, mode = found
        out.emit("DepthToSpace", source, blocksize=factor, mode=mode)


def _depth_to_space(flow: Dataflow, call: relax.Call) -> tuple[Expr, int, str] | None:
    """(source, factor, mode) when a reshape ends reshape, transpose, reshape of channels into pixels."""
    permute = _behind(flow, call)
    split = _behind(flow, permute) if op_name(permute) == "permute_dims" and permute.attrs.axes is not None else None
    if op_name(split) != "reshape" or len(shape_of(split)) != 6 or len(shape_of(split.args[0])) != 4:
        return None
    mode = _DEPTH_TO_SPACE.get(tuple(int(axis) for axis in permute.attrs.axes))
    n, channels, height, width = shape_of(split.args[0])
    factor = shape_of(split)[2]
    depth = channels // factor**2
    inner = {"CRD": (depth, factor, factor), "DCR": (factor, factor, depth)}.get(mode)
    whole = inner is not None and shape_of(split) == (n, *inner, height, width)
    return (
        (split.args[0], factor, mode)
        if whole and shape_of(call) == _enlarged(n, depth, height, width, factor)
        else None
    )


def _enlarged(n: int, depth: int, height: int, width: int, factor: int) -> tuple[int, ...]:
    return n, depth, height * factor, width * factor


def _behind(flow: Dataflow, call: Expr) -> Expr | None:
    data = call.args[0]
    return flow.value(behind_idle_pair(flow, data)) if isinstance(data, Var) else None


@relax_op("permute_dims")
def transpose(out: OnnxWriter, call: relax.Call) -> None:
    """Transpose."""
    axes, rank = call.attrs.axes, len(shape_of(call))
    perm = list(range(rank))[::-1] if axes is None else [int(axis) % rank for axis in axes]
    out.emit("Transpose", call.args[0], perm=perm)


@relax_op("concat")
def concat(out: OnnxWriter, call: relax.Call) -> None:
    """Concat."""
    if not isinstance(call.args[0], relax.Tuple):
        raise out.error("concatenates a tuple of unknown length", "tensors")
    out.emit("Concat", *call.args[0].fields, axis=int(call.attrs.axis))


@relax_op("strided_slice")
def slice_(out: OnnxWriter, call: relax.Call) -> None:
    """Slice."""
    axes, begin, end, *rest = (_int64(field.value for field in arg.fields) for arg in call.args[1:])
    steps = rest[0] if rest else np.ones_like(axes)
    arrays = {"starts": begin, "ends": end, "axes": axes, "steps": steps}
    out.emit("Slice", call.args[0], *(out.constant(array, role) for role, array in arrays.items()))


@relax_op("take")
def gather(out: OnnxWriter, call: relax.Call) -> None:
    """Gather; constant indices out of range are clipped or wrapped as the operator says. Channel shuffles go apart."""
    data, indices = call.args
    groups = _shuffled_groups(call)
    if groups is not None:
        _shuffle(out, call, groups)
        return
    axis, value = call.attrs.axis, const_value(indices)
    if axis is None:
        raise out.error("takes from a flattened tensor", "an axis")
    axis = int(axis) % len(shape_of(data))
    if value is not None:
        extent = shape_of(data)[axis]
        fixed = value % extent if str(call.attrs.mode) == "wrap" else np.clip(value, 0, extent - 1)
        indices = out.constant(fixed.astype(np.int64), "indices")
    out.emit("Gather", data, indices, axis=axis)


def _shuffled_groups(call: relax.Call) -> int | None:
    """The groups of a channel shuffle: a transposition of channels that are counted by group and place in it."""
    order, shape = const_value(call.args[1]), shape_of(call)
    if order is None or order.ndim != 1 or len(shape) != 4 or int(call.attrs.axis or 0) != 1 or order.size < 2:
        return None
    places = int(order[1])
    if places < 2 or order.size != shape_of(call.args[0])[1] or order.size % places:
        return None
    shuffled = np.arange(order.size).reshape(-1, places).T.reshape(-1)
    return order.size // places if np.array_equal(order, shuffled) else None


def _shuffle(out: OnnxWriter, call: relax.Call, groups: int) -> None:
    """Reshape, Transpose, Reshape: a Gather of bytes along channels crashes OpenVINO 2026.4."""
    n, channels, height, width = shape_of(call)
    split = out.constant(_int64((n, groups, channels // groups, height, width)), "split")
    parts = out.emit("Reshape", call.args[0], split, suffix="split")
    turned = out.emit("Transpose", parts, suffix="shuffled", perm=[0, 2, 1, 3, 4])
    out.emit("Reshape", turned, out.constant(_int64(shape_of(call)), "shape"))


_PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


@relax_op("nn.pad")
def pad(out: OnnxWriter, call: relax.Call) -> None:
    """Pad; Relax counts (before, after) per axis, ONNX first all before, then all after."""
    mode = _PAD_MODES.get(str(call.attrs.pad_mode))
    if mode is None:
        raise out.error(f"pads in mode '{call.attrs.pad_mode}'", ", ".join(_PAD_MODES))
    widths = _int64(call.attrs.pad_width)
    pads = out.constant(np.concatenate([widths[::2], widths[1::2]]), "pads")
    value = out.constant(np.float32(call.attrs.pad_value), "value") if float(call.attrs.pad_value) else None
    out.emit("Pad", call.args[0], pads, value, mode=mode)


@relax_op("broadcast_to")
def expand(out: OnnxWriter, call: relax.Call) -> None:
    """Expand."""
    out.emit("Expand", call.args[0], out.constant(_int64(shape_of(call)), "shape"))


@relax_op("tile")
def tile(out: OnnxWriter, call: relax.Call) -> None:
    """Tile; fewer counts than axes belong to the last ones."""
    rank, counts = len(shape_of(call.args[0])), _int64(call.attrs.repeats)
    if len(counts) > rank:
        raise out.error(f"repeats {len(counts)} axes of {rank}", "as many as the tensor has")
    repeats = np.concatenate([_int64([1] * (rank - len(counts))), counts])
    out.emit("Tile", call.args[0], out.constant(repeats, "repeats"))
