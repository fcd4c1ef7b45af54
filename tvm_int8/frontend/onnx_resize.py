"""Resize and Upsample of every opset.

What an interpolation does along one axis is computed here, as ONNX defines it: an index per output for `nearest`, a
matrix for `linear` and `cubic`. When ``image.resize2d`` does exactly that, it is used; when it does not (scales that do
not divide, symmetric coordinates, axes other than height and width), the indices become a take and the matrix a matmul.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import relax
from tvm.relax import op

from .onnx_fold import axes_of
from .onnx_registry import Node, onnx_op
from .values import Value

_TVM_MODES = ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel")


@dataclass(frozen=True)
class Axis:
    """A resized axis: old and new extent, scale, and the region of interest along it."""

    old: int
    new: int
    scale: float
    roi: tuple[float, float] = (0.0, 1.0)


def coordinates(axis: Axis, mode: str) -> np.ndarray:
    """Where each output lies in the input, float32 [axis.new] (ONNX Resize, coordinate_transformation_mode)."""
    i, scale = np.arange(axis.new, dtype=np.float32), np.float32(axis.scale)
    old, new = np.float32(axis.old), np.float32(axis.new)
    if mode == "asymmetric":
        return i / scale
    if mode == "half_pixel" or (mode == "pytorch_half_pixel" and axis.new > 1):
        return (i + np.float32(0.5)) / scale - np.float32(0.5)
    if mode == "half_pixel_symmetric":
        offset = old / 2 * (1 - new / (scale * old))
        return offset + (i + np.float32(0.5)) / scale - np.float32(0.5)
    if mode == "tf_half_pixel_for_nn":
        return (i + np.float32(0.5)) / scale
    if mode == "tf_crop_and_resize":
        start, end = np.float32(axis.roi[0]), np.float32(axis.roi[1])
        if axis.new == 1:
            return np.float32(0.5) * (start + end) * (old - 1) * np.ones(1, np.float32)
        return start * (old - 1) + i * (end - start) * (old - 1) / (new - 1)
    if mode == "align_corners" and axis.new > 1:
        return i * (old - 1) / (new - 1)
    return np.zeros(axis.new, np.float32)


def nearest_indices(axis: Axis, mode: str, rounding: str) -> np.ndarray:
    """Input index of every output of a nearest interpolation, int64 [axis.new]."""
    x = coordinates(axis, mode)
    if rounding == "floor":
        rounded = np.floor(x)
    elif rounding == "ceil":
        rounded = np.ceil(x)
    elif rounding == "round_prefer_floor":
        rounded = np.ceil(x - np.float32(0.5))
    else:
        rounded = np.floor(x + np.float32(0.5))
    return np.clip(rounded, 0, axis.old - 1).astype(np.int64)


def linear_matrix(axis: Axis, mode: str) -> np.ndarray:
    """Weights of a linear interpolation, float32 [axis.new, axis.old]."""
    x = np.clip(coordinates(axis, mode), 0, axis.old - 1)
    low = np.floor(x).astype(np.int64)
    high = np.minimum(low + 1, axis.old - 1)
    matrix, rows = np.zeros((axis.new, axis.old), np.float32), np.arange(axis.new)
    np.add.at(matrix, (rows, low), 1 - (x - low))
    np.add.at(matrix, (rows, high), x - low)
    return matrix


def cubic_matrix(axis: Axis, mode: str, a: float, exclude_outside: bool) -> np.ndarray:
    """Weights of a cubic convolution interpolation (Keys 1981), float32 [axis.new, axis.old]."""
    x = coordinates(axis, mode)
    base = np.floor(x)
    t = x - base
    taps = [_keys(t + 1, a), _keys(t, a), _keys(1 - t, a), _keys(2 - t, a)]
    matrix, rows = np.zeros((axis.new, axis.old), np.float32), np.arange(axis.new)
    for offset, weight in enumerate(taps):
        position = base.astype(np.int64) - 1 + offset
        if exclude_outside:
            weight = np.where((position < 0) | (position >= axis.old), 0, weight)
        np.add.at(matrix, (rows, np.clip(position, 0, axis.old - 1)), weight)
    return matrix / matrix.sum(1, keepdims=True) if exclude_outside else matrix


def _keys(distance: np.ndarray, a: float) -> np.ndarray:
    d = np.abs(distance)
    inner = ((a + 2) * d - (a + 3)) * d * d + 1
    return np.where(d <= 1, inner, ((a * d - 5 * a) * d + 8 * a) * d - 4 * a)


@onnx_op("Upsample")
def upsample(ctx, node: Node, x: Value, scales: Value | None = None) -> Value:
    """Upsample (opset 7 and 9): asymmetric coordinates, nearest rounds down."""
    given = ctx.static(node, scales, "scales")
    if given is None:
        given = node.get("scales") or [1.0, 1.0, node.get("height_scale", 1.0), node.get("width_scale", 1.0)]
    resized = {axis: _by_scale(dim, float(s)) for axis, (dim, s) in enumerate(zip(ctx.shape(x), given, strict=True))}
    return _resize(ctx, node, x, resized, "asymmetric", "floor")


@onnx_op("Resize")
def resize(ctx, node: Node, x: Value, *operands: Value | None) -> Value:
    """Resize (opset 10 on)."""
    if node.opset < 11:
        scales = ctx.static(node, operands[0], "scales")
        resized = {
            axis: _by_scale(dim, float(s)) for axis, (dim, s) in enumerate(zip(ctx.shape(x), scales, strict=True))
        }
        return _resize(ctx, node, x, resized, "asymmetric", "floor")
    roi, scales, sizes = (*[ctx.static(node, value, "size") for value in operands], None, None, None)[:3]
    mode = node.get("coordinate_transformation_mode", "half_pixel")
    axes = [axis % len(ctx.shape(x)) for axis in axes_of(node, None) or range(len(ctx.shape(x)))]
    extents = [ctx.shape(x)[axis] for axis in axes]
    if sizes is not None and sizes.size:
        chosen = _by_sizes(node, extents, [int(size) for size in sizes])
    elif scales is not None and scales.size:
        chosen = [_by_scale(dim, float(scale)) for dim, scale in zip(extents, scales, strict=True)]
    else:
        raise node.error("has neither scales nor sizes", "one of them")
    if mode == "tf_crop_and_resize":
        bounds = roi.reshape(2, -1)
        chosen = [
            Axis(a.old, a.new, a.scale, (float(lo), float(hi))) for a, lo, hi in zip(chosen, *bounds, strict=True)
        ]
    resized = dict(zip(axes, chosen, strict=True))
    return _resize(ctx, node, x, resized, mode, node.get("nearest_mode", "round_prefer_floor"))


def _by_scale(old: int, scale: float) -> Axis:
    return Axis(old, int(np.floor(np.float32(old) * np.float32(scale))), scale)


def _by_sizes(node: Node, extents: list[int], sizes: list[int]) -> list[Axis]:
    policy = node.get("keep_aspect_ratio_policy", "stretch")
    ratios = [size / old for size, old in zip(sizes, extents, strict=True)]
    if policy == "stretch":
        return [Axis(old, size, ratio) for old, size, ratio in zip(extents, sizes, ratios, strict=True)]
    scale = min(ratios) if policy == "not_larger" else max(ratios)
    return [Axis(old, int(np.floor(scale * old + 0.5)), scale) for old in extents]


def _resize(ctx, node: Node, x: Value, resized: dict[int, Axis], mode: str, rounding: str) -> Value:
    method = node.get("mode", "nearest")
    cropped = mode == "tf_crop_and_resize"
    changed = {axis: spec for axis, spec in resized.items() if spec.old != spec.new or spec.scale != 1.0 or cropped}
    changed = {axis: spec for axis, spec in changed.items() if (spec.old, spec.new) != (1, 1)}
    if not changed:
        return x
    if node.get("antialias", 0) and method != "nearest" and any(spec.scale < 1 for spec in changed.values()):
        raise node.error("shrinks with antialias=1", "antialias=0", "export it without antialiasing")
    rank = len(ctx.shape(x))
    if rank == 3 and set(changed) == {2}:
        lifted = {3: changed[2]}
        return ctx.lower_to_signal(_resize_axes(ctx, node, ctx.lift(x), lifted, method, mode, rounding))
    return _resize_axes(ctx, node, ctx.expr(x), changed, method, mode, rounding)


def _resize_axes(ctx, node: Node, x, changed: dict[int, Axis], method: str, mode: str, rounding: str) -> relax.Var:
    shape = ctx.shape(x)
    image = [changed.get(axis, Axis(shape[axis], shape[axis], 1.0)) for axis in (2, 3)] if len(shape) == 4 else []
    is_image = bool(image) and set(changed) <= {2, 3} and mode != "tf_crop_and_resize"
    if method == "nearest":
        indices = {axis: nearest_indices(spec, mode, rounding) for axis, spec in changed.items()}
        if is_image and all(
            (nearest_indices(s, mode, rounding) == np.arange(s.new) * s.old // s.new).all() for s in image
        ):
            return ctx.emit(
                op.image.resize2d(x, (image[0].new, image[1].new), **_options("nearest_neighbor", "asymmetric"))
            )
        for axis, positions in indices.items():
            x = ctx.emit(op.take(x, ctx.expr(positions), axis, mode="clip"), f"axis{axis}")
        return _extrapolate(ctx, node, x, changed, mode)
    if method not in ("linear", "bilinear", "cubic"):
        raise node.error(f"has mode '{method}'", "nearest, linear or cubic")
    a, exclude = float(node.get("cubic_coeff_a", -0.75)), bool(node.get("exclude_outside", 0))

    def matrix(spec: Axis, coordinate_mode: str) -> np.ndarray:
        return (
            cubic_matrix(spec, coordinate_mode, a, exclude)
            if method == "cubic"
            else linear_matrix(spec, coordinate_mode)
        )

    candidates = sorted(_TVM_MODES, key=lambda name: name != mode) if is_image else []
    if any(spec.new == 1 for spec in image):
        candidates = [name for name in candidates if name != "align_corners"]  # TVM divides by new - 1
    for candidate in candidates:
        stretched = [Axis(spec.old, spec.new, spec.new / spec.old) for spec in image]
        if all(
            np.allclose(matrix(s, mode), matrix(t, candidate), atol=1e-5) for s, t in zip(image, stretched, strict=True)
        ):
            options = _options("cubic" if method == "cubic" else "linear", candidate)
            extra = {"cubic_alpha": a, "cubic_exclude": int(exclude)} if method == "cubic" else {}
            return ctx.emit(op.image.resize2d(x, (image[0].new, image[1].new), **options, **extra))
    for axis, spec in changed.items():
        x = _interpolate(ctx, x, axis, matrix(spec, mode))
    return _extrapolate(ctx, node, x, changed, mode)


def _options(method: str, mode: str) -> dict:
    rounding = "floor" if method == "nearest_neighbor" else ""
    return {"method": method, "coordinate_transformation_mode": mode, "rounding_method": rounding}


def _interpolate(ctx, x, axis: int, matrix: np.ndarray) -> relax.Var:
    """Multiply along `axis` by a matrix [new, old]."""
    shape = ctx.shape(x)
    before, after = int(np.prod(shape[:axis])), int(np.prod(shape[axis + 1 :]))
    if after == 1:
        out = op.matmul(op.reshape(x, (before, shape[axis])), ctx.expr(np.ascontiguousarray(matrix.T)))
    else:
        out = op.matmul(ctx.expr(matrix), op.reshape(x, (before, shape[axis], after)))
    return ctx.emit(
        op.reshape(ctx.emit(out, f"axis{axis}"), (*shape[:axis], len(matrix), *shape[axis + 1 :])), "interpolated"
    )


def _extrapolate(ctx, node: Node, x, changed: dict[int, Axis], mode: str) -> relax.Var:
    """Put the extrapolation value where tf_crop_and_resize looks outside of the image."""
    if mode != "tf_crop_and_resize":
        return x
    rank, inside = len(ctx.shape(x)), np.ones([1] * len(ctx.shape(x)), bool)
    for axis, spec in changed.items():
        at = coordinates(spec, mode)
        along = [1] * rank
        along[axis] = spec.new
        inside = inside & ((at >= 0) & (at <= spec.old - 1)).reshape(along)
    if inside.all():
        return x
    value = np.asarray(node.get("extrapolation_value", 0.0), np.float32)
    return ctx.emit(op.where(ctx.expr(inside), x, ctx.expr(value)), "extrapolated")
