"""The tables of resize against ONNX Runtime's Resize."""

import numpy as np
import pytest
from onnx import helper

from tests.frontend.running import run_onnx
from tvm_int8.passes.resize_tables import MODES, ROUNDING, axis_table, source_coordinates

onnxruntime = pytest.importorskip("onnxruntime")

SIZES = [(4, 8), (8, 4), (5, 7), (7, 5), (3, 9), (9, 3), (1, 4), (4, 4), (6, 1)]


def onnx_resize(x: np.ndarray, target: int, mode: str, coordinates: str, rounding: str) -> np.ndarray:
    """Resize the last axis of x [1, 1, 2, W]."""
    node = helper.make_node(
        "Resize",
        ["x", "none", "none", "sizes"],
        ["y"],
        mode=mode,
        coordinate_transformation_mode=coordinates,
        nearest_mode=rounding,
    )
    sizes = helper.make_tensor("sizes", 7, [4], [*x.shape[:3], target])
    none = helper.make_tensor("none", 1, [0], [])  # neither regions nor scales
    inputs = [helper.make_tensor_value_info("x", 1, x.shape)]
    outputs = [helper.make_tensor_value_info("y", 1, (*x.shape[:3], target))]
    graph = helper.make_graph([node], "resize", inputs, outputs, [sizes, none])
    opset = 11 if coordinates == "tf_half_pixel_for_nn" else 13
    return run_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), {"x": x})[0]


def apply(table, x: np.ndarray) -> np.ndarray:
    low, high, weight = (np.array(column) for column in zip(*table, strict=True))
    return x[..., low] * (1 - weight) + x[..., high] * weight


@pytest.mark.parametrize("coordinates", ["half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"])
@pytest.mark.parametrize(("size", "target"), SIZES)
def test_linear(size, target, coordinates, rng):
    x = rng.standard_normal((1, 1, 2, size)).astype(np.float32)
    expected = onnx_resize(x, target, "linear", coordinates, "floor")
    np.testing.assert_allclose(apply(axis_table(size, target, "linear", coordinates, ""), x), expected, atol=2e-6)


@pytest.mark.parametrize("rounding", ["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"])
@pytest.mark.parametrize("coordinates", MODES)
def test_nearest(coordinates, rounding, rng):
    for size, target in SIZES:
        if size == target:
            continue  # ONNX Runtime copies, whatever the coordinates
        x = rng.standard_normal((1, 1, 2, size)).astype(np.float32)
        expected = onnx_resize(x, target, "nearest", coordinates, rounding)
        found = apply(axis_table(size, target, "nearest", coordinates, rounding), x)
        np.testing.assert_array_equal(found, expected, f"{size} -> {target}")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", ["nearest", "linear"])
def test_tables_stay_inside_the_tensor(mode, method):
    for size, target in [*SIZES, (1, 1), (2, 31), (31, 2)]:
        for rounding in ROUNDING if method == "nearest" else [""]:
            table = axis_table(size, target, method, mode, rounding)
            assert len(table) == target
            assert all(0 <= low < size and 0 <= high < size and 0 <= weight <= 1 for low, high, weight in table)


def test_half_pixel_centres():
    np.testing.assert_array_equal(source_coordinates(2, 4, "half_pixel"), [-0.25, 0.25, 0.75, 1.25])
    np.testing.assert_array_equal(source_coordinates(5, 3, "align_corners"), [0, 2, 4])
