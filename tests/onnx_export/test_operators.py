"""Every rule on its own: an operator imported, exported and run by ONNX Runtime computes what it did before."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.frontend.running import graph, node, one_node, random_feeds, run_onnx
from tests.numpy_calibration import imported
from tvm_int8.onnx_export import export_onnx
from tvm_int8.onnx_export.registry import RULES

RNG = np.random.default_rng(3)
IMAGE = (1, 4, 6, 8)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def unary(op_type: str, opset: int = 20, **attributes) -> onnx.ModelProto:
    return one_node(op_type, IMAGE, opset=opset, **attributes)


def conv(out: int, kernel: int, shape=IMAGE, bias: bool = True, transposed: bool = False, **attributes):
    group = attributes.get("group", 1)
    first, second = (shape[1], out // group) if transposed else (out, shape[1] // group)
    constants = [normal(first, second, *[kernel] * (len(shape) - 2)), *([normal(out)] if bias else [])]
    return one_node("ConvTranspose" if transposed else "Conv", shape, *constants, **attributes)


def compare(op_type: str, dtype: str = "bool") -> onnx.ModelProto:
    return graph([node(op_type, "x z")], {"x": IMAGE, "z": (1, 4, 1, 8)}, {}, {"y": dtype})


def logic(op_type: str) -> onnx.ModelProto:
    nodes = [node("Greater", "x c", "a"), node("Less", "x d", "b"), node(op_type, "a b" if op_type != "Not" else "a")]
    return graph(nodes, {"x": IMAGE}, {"c": f32(0.5), "d": f32(0.9)}, {"y": "bool"})


def hard_swish_by_hand() -> onnx.ModelProto:
    nodes = [node("HardSigmoid", "x", "g", alpha=1 / 6, beta=0.5), node("Mul", "g x")]
    return graph(nodes, {"x": IMAGE})


def integer_division() -> onnx.ModelProto:
    ints = RNG.integers(-9, 9, (2, 3), np.int32)
    return graph([node("Div", "x c")], {"x": ints}, {"c": np.array([2, 3, 4], np.int32)}, {"y": "int32"})


def lrn_by_pool(size: int, before: int) -> onnx.ModelProto:
    """Local response normalisation over channels c - before .. c - before + size - 1, as TensorFlow writes it."""
    window = {"kernel_shape": [size, 1, 1], "pads": [before, 0, 0, size - 1 - before, 0, 0], "count_include_pad": 1}
    nodes = [node("Mul", "x x", "q"), node("Unsqueeze", "q one", "u"), node("AveragePool", "u", "p", **window)]
    nodes += [node("Squeeze", "p one", "m"), node("Mul", "m a", "s"), node("Add", "s b", "t"), node("Pow", "t c", "d")]
    weights = {"one": i64(1), "a": f32(0.3)[0], "b": f32(1.5)[0], "c": f32(0.6)[0]}
    return graph([*nodes, node("Div", "x d")], {"x": (1, 9, 5, 5)}, weights)


def resize(scale: float, shape=IMAGE, **attributes) -> onnx.ModelProto:
    return one_node("Resize", shape, None, f32(1, 1, scale, scale), **attributes)


CASES = {
    **{f"{op.lower()}": unary(op) for op in ("Relu", "Sigmoid", "Tanh", "Softplus", "HardSwish", "Mish", "Gelu")},
    **{f"{op.lower()}": unary(op) for op in ("Abs", "Neg", "Exp", "Floor", "Ceil", "Sign", "Sin", "Cos", "Erf")},
    "gelu_tanh": unary("Gelu", approximate="tanh"),
    "silu": graph([node("Sigmoid", "x", "g"), node("Mul", "x g")], {"x": IMAGE}),
    "hard_sigmoid": unary("HardSigmoid", alpha=0.3, beta=0.4),
    "hard_swish_by_hand": hard_swish_by_hand(),
    "leaky_relu": unary("LeakyRelu", alpha=0.2),
    "prelu": one_node("PRelu", IMAGE, normal(4, 1, 1)),
    "clip": one_node("Clip", IMAGE, f32(-0.5).reshape(()), f32(0.7).reshape(())),
    "clip_0_1": one_node("Clip", IMAGE, f32(0).reshape(()), f32(1).reshape(())),
    "maximum": one_node("Max", IMAGE, f32(-0.5)),
    "minimum": one_node("Min", IMAGE, f32(0.5)),
    "softmax": unary("Softmax", axis=1),
    "log_softmax": unary("LogSoftmax", axis=-1),
    "log_of_sqrt": graph(
        [node("Abs", "x", "a"), node("Sqrt", "a", "b"), node("Add", "b c", "d"), node("Log", "d")],
        {"x": IMAGE},
        {"c": f32(1)},
    ),
    "power": graph([node("Abs", "x", "a"), node("Pow", "a c")], {"x": IMAGE}, {"c": f32(1.7)}),
    "arithmetic": graph(
        [node("Sub", "x z", "a"), node("Mul", "a x", "b"), node("Abs", "z", "p"), node("Add", "p o", "q")]
        + [node("Div", "b q")],
        {"x": IMAGE, "z": (1, 4, 1, 8)},
        {"o": f32(1)},
    ),
    "integer_division": integer_division(),
    **{op.lower(): compare(op) for op in ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")},
    **{op.lower(): logic(op) for op in ("And", "Or", "Not")},
    "where": graph([node("Less", "x z", "c"), node("Where", "c x z")], {"x": IMAGE, "z": IMAGE}),
    "cast": graph([node("Cast", "x", to=onnx.TensorProto.INT32)], {"x": IMAGE}, {}, {"y": "int32"}),
    "conv": conv(5, 3, pads=[1, 0, 2, 1], strides=[2, 1]),
    "conv_without_bias": conv(5, 3, bias=False),
    "depthwise": conv(4, 3, group=4, dilations=[2, 2]),
    "conv_1d": conv(5, 3, (2, 4, 9), pads=[1, 1]),
    "conv_3d": conv(3, 2, (1, 2, 4, 5, 6), pads=[1, 0, 0, 0, 1, 1]),
    "conv_transpose": conv(5, 3, transposed=True, strides=[2, 2], pads=[1, 1, 0, 1], output_padding=[1, 0]),
    "conv_transpose_groups": conv(20, 3, transposed=True, group=2),
    "sub_pixel": conv(1, 4, transposed=True, strides=[2, 2], pads=[1, 1, 1, 1]),
    "dense": one_node("Gemm", (3, 7), normal(5, 7), normal(5), transB=1),
    "dense_without_bias": one_node("MatMul", (3, 7), normal(7, 5)),
    "matmul": graph([node("MatMul", "x z")], {"x": (2, 3, 4), "z": (2, 4, 5)}),
    "flatten_dense": graph(
        [node("Flatten", "x", "f"), node("Gemm", "f w b", transB=1)],
        {"x": (2, 3, 4, 2)},
        {"w": normal(5, 24), "b": normal(5)},
    ),
    "max_pool": unary("MaxPool", kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1]),
    "max_pool_ceil": unary("MaxPool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    "max_pool_dilated": unary("MaxPool", kernel_shape=[2, 2], dilations=[2, 3]),
    "max_pool_3d": one_node("MaxPool", (1, 2, 4, 5, 6), kernel_shape=[2, 3, 2], pads=[0, 1, 0, 0, 1, 0]),
    "average_pool": unary("AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "average_pool_counting": unary("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    "average_pool_ceil": unary(
        "AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 0, 0], ceil_mode=1, count_include_pad=1
    ),
    "average_pool_3d": one_node("AveragePool", (1, 2, 4, 5, 6), kernel_shape=[2, 2, 2], strides=[2, 1, 2]),
    "global_average_pool": unary("GlobalAveragePool"),
    "global_max_pool": unary("GlobalMaxPool"),
    "lrn": one_node("LRN", (1, 9, 5, 5), size=5, alpha=0.3, beta=0.6, bias=1.5),
    "lrn_even": lrn_by_pool(4, 1),
    "lrn_aside": lrn_by_pool(5, 0),
    "nearest": resize(2, coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
    "nearest_half_pixel": resize(1.5, mode="nearest"),
    "nearest_downwards": resize(0.7, (1, 2, 13, 9), coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
    "linear": resize(2, mode="linear"),
    "linear_corners": resize(1.7, mode="linear", coordinate_transformation_mode="align_corners"),
    "cubic": resize(2, mode="cubic", cubic_coeff_a=-0.6),
    "reshape": one_node("Reshape", IMAGE, i64(2, 2, -1)),
    "transpose": unary("Transpose", perm=[0, 3, 1, 2]),
    "concat": graph([node("Concat", "x z", axis=1)], {"x": IMAGE, "z": (1, 3, 6, 8)}),
    "slice": one_node("Slice", IMAGE, i64(1, -6), i64(3, 99), i64(1, 3), i64(1, 2)),
    "slice_backwards": one_node("Slice", IMAGE, i64(5), i64(-99), i64(2), i64(-1)),
    "split": graph([node("Split", "x", "a b", axis=1, num_outputs=2), node("Sub", "a b")], {"x": IMAGE}, opset=20),
    "gather": one_node("Gather", IMAGE, i64(3, 0, 2), axis=1),
    "gather_by_data": graph([node("Gather", "x i", axis=1)], {"x": IMAGE, "i": i64(0, 0)}),
    "shuffle": graph(
        [node("Reshape", "x s", "a"), node("Transpose", "a", "b", perm=[0, 2, 1, 3, 4]), node("Reshape", "b t")],
        {"x": IMAGE},
        {"s": i64(1, 2, 2, 6, 8), "t": i64(*IMAGE)},
    ),
    "take_that_is_no_shuffle": one_node("Gather", IMAGE, i64(0, 2, 3, 1), axis=1),
    "depth_to_space": unary("DepthToSpace", blocksize=2),
    "depth_to_space_crd": one_node("DepthToSpace", (2, 12, 3, 4), blocksize=2, mode="CRD"),
    "space_to_depth": unary("SpaceToDepth", blocksize=2),
    "pad": one_node("Pad", IMAGE, i64(0, 0, 1, 2, 0, 1, 0, 3), f32(0.5).reshape(())),
    **{f"pad_{m}": one_node("Pad", IMAGE, i64(0, 0, 1, 2, 0, 0, 0, 3), mode=m, opset=19) for m in ("reflect", "edge")},
    "pad_wrap": one_node("Pad", IMAGE, i64(0, 0, 1, 2, 0, 0, 0, 3), mode="wrap", opset=19),
    "expand": one_node("Expand", (1, 4, 1, 8), i64(2, 4, 3, 8)),
    "tile": one_node("Tile", IMAGE, i64(1, 2, 1, 3)),
    **{op.lower(): unary(op, 17, axes=[1, 3]) for op in ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd")},
    "reducesum": one_node("ReduceSum", IMAGE, i64(2), keepdims=0),
    "reduce_all": unary("ReduceMax", 17, keepdims=0),
    "argmax": graph([node("ArgMax", "x", axis=1, keepdims=0)], {"x": IMAGE}, {}, {"y": "int64"}),
    "argmin": graph([node("ArgMin", "x", axis=-1)], {"x": IMAGE}, {}, {"y": "int64"}),
    "batch_norm": one_node("BatchNormalization", IMAGE, normal(4), normal(4), normal(4), np.abs(normal(4)) + 1),
    "instance_norm": one_node("InstanceNormalization", IMAGE, normal(4), normal(4)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_operator(name):
    model = CASES[name]
    feeds = random_feeds(model, seed=1)
    if name == "gather_by_data":
        feeds["i"] = i64(3, 1)
    exported = export_onnx(imported(model))
    for expected, found in zip(run_onnx(model, feeds), run_onnx(exported, feeds), strict=True):
        assert found.shape == expected.shape and found.dtype == expected.dtype
        np.testing.assert_allclose(found.astype(np.float64), expected.astype(np.float64), rtol=1e-5, atol=2e-6)


def op_types(name: str) -> list[str]:
    return [made.op_type for made in export_onnx(imported(CASES[name])).graph.node]


def test_operators_of_onnx_come_back():
    """What the frontend writes as arithmetic is one operator again."""
    assert op_types("hardswish") == op_types("hard_swish_by_hand") == ["HardSwish"]
    assert op_types("hard_sigmoid") == ["HardSigmoid"]
    assert op_types("depth_to_space") == op_types("depth_to_space_crd") == ["DepthToSpace"]
    assert op_types("lrn") == ["LRN"]
    assert op_types("shuffle") == ["Reshape", "Transpose", "Reshape"]
    assert op_types("gather") == ["Gather"]
    assert op_types("nearest") == ["Resize"]
    assert op_types("dense") == ["Gemm"]
    assert op_types("flatten_dense") == ["Flatten", "Gemm"]
    assert op_types("conv") == ["Conv"]
    assert op_types("clip_0_1") == ["Clip"]


def test_nearest_where_float32_rounds_wrongly_is_a_gather():
    """7 / float32(14 / 6) is below 3."""
    model = resize(14 / 6, (1, 1, 6, 6), coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    found = [made.op_type for made in export_onnx(imported(model)).graph.node]
    assert set(found) <= {"Resize", "Gather"}
    feeds = random_feeds(model)
    np.testing.assert_array_equal(run_onnx(model, feeds)[0], run_onnx(export_onnx(imported(model)), feeds)[0])


def test_every_rule_is_tried():
    """Those of operators that only Relax modules have are in test_relax_operators."""
    from tests.onnx_export.test_relax_operators import CASES as RELAX

    seen = set(RELAX)
    for model in CASES.values():
        from tvm_int8.passes.dataflow import Dataflow
        from tvm_int8.passes.expressions import op_name

        seen |= {op_name(binding.value) for binding in Dataflow(imported(model)).bindings}
    assert set(RULES) - seen <= {"quantize", "dequantize"}
