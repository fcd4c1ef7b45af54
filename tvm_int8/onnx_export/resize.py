"""Resizing of images."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax

from tvm_int8.passes.expressions import shape_of
from tvm_int8.passes.resize_tables import axis_table

from .registry import relax_op
from .writer import OnnxWriter


@relax_op("image.resize2d")
def resize(out: OnnxWriter, call: relax.Call) -> None:
    """Resize to a size."""
    attrs = call.attrs
    if str(attrs.layout) != "NCHW":
        raise out.error(f"has the layout {attrs.layout}", "NCHW", "convert the layout")
    if str(attrs.method) == "nearest_neighbor":
        _nearest(out, call)
        return
    options: dict[str, Any] = {
        "mode": str(attrs.method),
        "coordinate_transformation_mode": str(attrs.coordinate_transformation_mode),
    }
    if options["mode"] == "cubic":
        options |= {"cubic_coeff_a": float(attrs.cubic_alpha), "exclude_outside": int(attrs.cubic_exclude)}
    out.emit("Resize", call.args[0], None, None, _sizes(out, call), **options)


def _sizes(out: OnnxWriter, call: relax.Call) -> str:
    return out.constant(np.asarray(shape_of(call), np.int64), "sizes")


def _nearest(out: OnnxWriter, call: relax.Call) -> None:
    """Resize where rounding down in float32 finds the pixels, else a Gather per axis."""
    attrs, sizes, targets = call.attrs, shape_of(call.args[0])[2:], shape_of(call)[2:]
    mode, rounding = str(attrs.coordinate_transformation_mode), str(attrs.rounding_method)
    rows, columns = (
        np.asarray([low for low, _, _ in axis_table(size, target, "nearest", mode, rounding)], np.int64)
        for size, target in zip(sizes, targets, strict=True)
    )
    axes = zip((rows, columns), sizes, targets, strict=True)
    if all(np.array_equal(table, _rounded_down(size, target)) for table, size, target in axes):
        options = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        out.emit("Resize", call.args[0], None, None, _sizes(out, call), mode="nearest", **options)
        return
    taken = out.emit("Gather", call.args[0], out.constant(rows, "rows"), suffix="taken_rows", axis=2)
    out.emit("Gather", taken, out.constant(columns, "columns"), axis=3)


def _rounded_down(size: int, target: int) -> np.ndarray:
    """What ONNX Runtime computes for `asymmetric` and `floor`."""
    return np.floor(np.arange(target, dtype=np.float32) / np.float32(target / size)).astype(np.int64)
