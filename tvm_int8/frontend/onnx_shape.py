"""Operators that move data: reshapes, transposes, slices, joins, padding."""

from __future__ import annotations

import numpy as np
from tvm import relax
from tvm.relax import op

from ..errors import ModelError
from .onnx_fold import axes_of, slices_of, target_shape
from .onnx_registry import Node, onnx_op
from .values import QuantizedConstant, Value


@onnx_op("Identity")
def identity(ctx, node: Node, x: Value) -> Value:
    """Nothing."""
    return x


@onnx_op("Dropout")
def dropout(ctx, node: Node, x: Value, ratio=None, training_mode=None) -> list[Value]:
    """Nothing at inference; the mask lets everything through."""
    mask = [np.ones(ctx.shape(x), bool)] if len(node.outputs) > 1 and node.outputs[1] else []
    return [x, *mask]


@onnx_op("Shape")
def shape(ctx, node: Node, x: Value) -> np.ndarray:
    """The shape, which is static."""
    return np.asarray(ctx.shape(x)[node.get("start", 0) : node.get("end")], np.int64)


@onnx_op("Size")
def size(ctx, node: Node, x: Value) -> np.ndarray:
    """The number of elements, which is static."""
    return np.asarray(int(np.prod(ctx.shape(x), dtype=np.int64)), np.int64)


def reshape_to(ctx, x: Value, shape: tuple[int, ...], suffix: str = "") -> Value:
    """`x` in another shape: nothing when it has it already, one reshape when it was reshaped before."""
    shape = tuple(int(dim) for dim in shape)
    if ctx.shape(x) == shape:
        return x
    if isinstance(x, np.ndarray):
        return x.reshape(shape)
    if isinstance(x, QuantizedConstant):
        reshaped = x.reshaped(shape)
        return x.dequantized().reshape(shape) if reshaped is None else reshaped
    earlier = ctx.emitter.defined_by(x, "reshape")
    if earlier is not None:
        x = earlier.args[0]
        if ctx.shape(x) == shape:
            return x
    return ctx.emit(op.reshape(x, shape), suffix)


@onnx_op("Reshape")
def reshape(ctx, node: Node, x: Value, target: Value | None = None) -> Value:
    """Reshape with 0 and -1 resolved."""
    return reshape_to(ctx, x, target_shape(node, ctx.shape(x), ctx.static(node, target, "shape")))


@onnx_op("Flatten")
def flatten(ctx, node: Node, x: Value) -> Value:
    """Flatten to two axes."""
    old, axis = ctx.shape(x), int(node.get("axis", 1))
    axis = axis + len(old) if axis < 0 else axis
    return reshape_to(ctx, x, (int(np.prod(old[:axis])), int(np.prod(old[axis:]))))


@onnx_op("Squeeze")
def squeeze(ctx, node: Node, x: Value, axes: Value | None = None) -> Value:
    """Drop axes of extent one."""
    old, chosen = ctx.shape(x), axes_of(node, ctx.static(node, axes, "axes"))
    drop = {axis % len(old) for axis in chosen} if chosen is not None else {a for a, dim in enumerate(old) if dim == 1}
    if any(old[axis] != 1 for axis in drop):
        raise node.error(f"squeezes {sorted(drop)} of {list(old)}", "axes of extent 1")
    return reshape_to(ctx, x, tuple(dim for axis, dim in enumerate(old) if axis not in drop))


@onnx_op("Unsqueeze")
def unsqueeze(ctx, node: Node, x: Value, axes: Value | None = None) -> Value:
    """Insert axes of extent one."""
    chosen = axes_of(node, ctx.static(node, axes, "axes")) or []
    rest = list(ctx.shape(x))
    rank = len(rest) + len(chosen)
    inserted = {axis % rank for axis in chosen}
    return reshape_to(ctx, x, tuple(1 if axis in inserted else rest.pop(0) for axis in range(rank)))


@onnx_op("Transpose")
def transpose(ctx, node: Node, x: Value) -> Value:
    """Transpose."""
    return permute(ctx, x, list(node.get("perm") or range(len(ctx.shape(x)))[::-1]))


def permute(ctx, x: Value, axes: list[int]) -> Value:
    """`x` with its axes permuted: a reshape when only axes of extent one move."""
    old = ctx.shape(x)
    if sorted(axes) != list(range(len(old))):
        raise ModelError("transpose", f"has axes {axes} for {len(old)} axes", "a permutation", "check the model")
    if isinstance(x, np.ndarray):
        return np.ascontiguousarray(x.transpose(axes))
    if isinstance(x, QuantizedConstant):
        return x.transposed(axes)
    moving = [axis for axis in axes if old[axis] != 1]
    if moving == sorted(moving):
        return reshape_to(ctx, x, tuple(old[axis] for axis in axes))
    return ctx.emit(op.permute_dims(ctx.expr(x), axes))


@onnx_op("Concat")
def concat(ctx, node: Node, *values: Value) -> Value:
    """Concat; operands without elements are dropped."""
    axis = node.axis(len(ctx.shape(values[0])), 1)
    kept = [value for value in values if 0 not in ctx.shape(value)] or list(values[:1])
    if len(kept) == 1:
        return kept[0]
    return ctx.emit(op.concat([ctx.expr(value) for value in kept], axis))


@onnx_op("Split")
def split(ctx, node: Node, x: Value, sizes: Value | None = None) -> list[Value]:
    """Split with sizes as an attribute, an input, or equal parts."""
    axis = node.axis(len(ctx.shape(x)), 0)
    extent = ctx.shape(x)[axis]
    lengths = ctx.static(node, sizes, "split") if sizes is not None else node.get("split")
    if lengths is None:
        count = int(node.get("num_outputs") or len(node.outputs))
        step = -(-extent // count)
        lengths = [step] * (count - 1) + [extent - step * (count - 1)]
    lengths = [int(length) for length in lengths]
    if len(lengths) == 1:
        return [x]
    if sum(lengths) != extent:
        raise node.error(f"splits {extent} into {lengths}", "lengths that add up")
    bounds = [int(bound) for bound in np.cumsum(lengths)[:-1]]
    parts = ctx.emit(op.split(ctx.expr(x), bounds, axis), "parts")
    return [ctx.emit(relax.TupleGetItem(parts, index), str(index)) for index in range(len(lengths))]


def _take(ctx, x, axis: int, positions, suffix: str) -> relax.Var:
    return ctx.emit(op.take(x, ctx.expr(np.asarray(positions, np.int64)), axis, mode="clip"), suffix)


@onnx_op("Slice")
def slice_(ctx, node: Node, x: Value, starts=None, ends=None, axes=None, steps=None) -> Value:
    """Slice with constant bounds; nothing when it takes everything, a gather when a step is negative."""
    spec = [ctx.static(node, value, "bounds") for value in (starts, ends, axes, steps)]
    shape = ctx.shape(x)
    ranges = slices_of(node, shape, *spec)
    if any(len(range(*bounds)) == 0 for bounds in ranges):
        return np.zeros([len(range(*bounds)) for bounds in ranges], ctx.dtype(x))
    forward = [axis for axis, (lo, hi, step) in enumerate(ranges) if step > 0 and (lo, hi, step) != (0, shape[axis], 1)]
    backward = [axis for axis, bounds in enumerate(ranges) if bounds[2] < 0]
    out = ctx.expr(x) if forward or backward else x
    if forward:
        lo, hi, step = zip(*(ranges[axis] for axis in forward), strict=True)
        out = ctx.emit(op.strided_slice(out, forward, lo, hi, step), "" if not backward else "forward")
    for axis in backward:
        out = _take(ctx, out, axis, list(range(*ranges[axis])), f"axis{axis}")
    return out


@onnx_op("Gather")
def gather(ctx, node: Node, x: Value, index: Value) -> Value:
    """Gather: a slice when the indices are a range, else take."""
    shape = ctx.shape(x)
    axis = node.axis(len(shape), 0)
    if isinstance(index, relax.Var):
        return ctx.emit(op.take(ctx.expr(x), index, axis, mode="wrap"))
    index = np.asarray(index)
    if index.size and (index.min() < -shape[axis] or index.max() >= shape[axis]):
        raise node.error(f"takes index {int(index.max())} of {shape[axis]}", "indices in range")
    flat = [int(i) % shape[axis] for i in index.reshape(-1)]
    if flat and flat == list(range(flat[0], flat[0] + len(flat))):
        whole = len(flat) == shape[axis]
        out = x if whole else ctx.emit(op.strided_slice(ctx.expr(x), [axis], [flat[0]], [flat[0] + len(flat)]), "slice")
    else:
        out = _take(ctx, ctx.expr(x), axis, flat, "take")
    return reshape_to(ctx, out, (*shape[:axis], *index.shape, *shape[axis + 1 :]))


_PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


@onnx_op("Pad")
def pad(ctx, node: Node, x: Value, pads=None, value=None, axes=None) -> Value:
    """Pad with attributes (opset < 11) or inputs; negative widths crop."""
    rank, shape = len(ctx.shape(x)), ctx.shape(x)
    given = node.get("pads", node.get("paddings")) if pads is None else ctx.static(node, pads, "pads")
    given = [int(width) for width in np.asarray(given).reshape(-1)]
    chosen = axes_of(node, ctx.static(node, axes, "axes")) or list(range(rank))
    begin, end = [0] * rank, [0] * rank
    for position, axis in enumerate(chosen):
        begin[axis], end[axis] = given[position], given[position + len(chosen)]
    mode = _PAD_MODES.get(node.get("mode", "constant"))
    if mode is None:
        raise node.error(f"has mode '{node.get('mode')}'", "constant, reflect, edge or wrap")
    fill = node.get("value", 0.0) if value is None else np.asarray(ctx.static(node, value, "value")).reshape(-1)[0]
    out = ctx.expr(x)
    if any(width < 0 for width in begin + end):
        lo, hi = [max(-b, 0) for b in begin], [dim - max(-e, 0) for dim, e in zip(shape, end, strict=True)]
        out = ctx.emit(op.strided_slice(out, list(range(rank)), lo, hi), "crop")
    widths = [max(width, 0) for pair in zip(begin, end, strict=True) for width in pair]
    return ctx.emit(op.nn.pad(out, widths, mode, float(fill))) if any(widths) else (out if any(begin + end) else x)


@onnx_op("Expand")
def expand(ctx, node: Node, x: Value, target: Value) -> Value:
    """Expand to a broadcast shape."""
    wanted = tuple(int(dim) for dim in ctx.static(node, target, "shape"))
    wanted = np.broadcast_shapes(ctx.shape(x), wanted)
    return x if wanted == ctx.shape(x) else ctx.emit(op.broadcast_to(ctx.expr(x), wanted))


@onnx_op("Tile")
def tile(ctx, node: Node, x: Value, repeats: Value) -> Value:
    """Tile."""
    counts = [int(count) for count in ctx.static(node, repeats, "repeats")]
    return x if set(counts) == {1} else ctx.emit(op.tile(ctx.expr(x), counts))


@onnx_op("DepthToSpace")
def depth_to_space(ctx, node: Node, x: Value) -> Value:
    """DepthToSpace as reshape, transpose, reshape."""
    (n, c, h, w), block = ctx.shape(x), int(node.get("blocksize"))
    depth = c // block**2
    if node.get("mode", "DCR") == "DCR":
        inner, axes = (n, block, block, depth, h, w), [0, 3, 4, 1, 5, 2]
    else:
        inner, axes = (n, depth, block, block, h, w), [0, 1, 4, 2, 5, 3]
    blocks = ctx.emit(op.reshape(ctx.expr(x), inner), "blocks")
    moved = ctx.emit(op.permute_dims(blocks, axes), "moved")
    return ctx.emit(op.reshape(moved, (n, depth, h * block, w * block)))


@onnx_op("SpaceToDepth")
def space_to_depth(ctx, node: Node, x: Value) -> Value:
    """SpaceToDepth as reshape, transpose, reshape."""
    (n, c, h, w), block = ctx.shape(x), int(node.get("blocksize"))
    blocks = ctx.emit(op.reshape(ctx.expr(x), (n, c, h // block, block, w // block, block)), "blocks")
    axes = [0, 3, 5, 1, 2, 4] if node.get("mode", "DCR") == "DCR" else [0, 1, 3, 5, 2, 4]
    moved = ctx.emit(op.permute_dims(blocks, axes), "moved")
    return ctx.emit(op.reshape(moved, (n, c * block**2, h // block, w // block)))
