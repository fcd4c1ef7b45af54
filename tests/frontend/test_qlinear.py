"""Quantised operators one by one, through the whole pipeline: on integer kernels, within one unit of ONNX Runtime.

The kernels' statement in NumPy is what runs here; that compiled kernels equal it is tested with the schedules.
"""

import numpy as np
import onnxruntime
import pytest
from onnx import helper

from tests.frontend.running import graph, node, random_weights, run_onnx
from tvm_int8 import pipeline
from tvm_int8.frontend import load_model
from tvm_int8.kernel_op import is_kernel, spec_of
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.expressions import op_name
from tvm_int8.reference.network import run_network

IMAGE = (2, 19, 9, 8)
DTYPES = [np.uint8, np.int8]
MICROSOFT = "com.microsoft"


def integers(rng, dtype, shape):
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max + 1, shape).astype(dtype)


def real(rng, *shape, low=-1.0, high=1.0):
    return rng.uniform(low, high, shape).astype(np.float32)


def int64(*values):
    return np.array(values, np.int64)


def check(model, feeds, levels=("ORT_DISABLE_ALL", "ORT_ENABLE_ALL")):
    """Compare in units of the outputs, with ONNX Runtime's operators as they are and as it fuses them."""
    ordered = pipeline.order()(pipeline.canonical_float()(load_model(model)))
    results = run_network(ordered, *feeds.values())
    for level in levels:
        expected = run_onnx(model, feeds) if level == "ORT_DISABLE_ALL" else run_optimised(model, feeds)
        for result, wanted in zip(results, expected, strict=True):
            assert result.dtype == wanted.dtype
            difference = np.abs(result.astype(np.int64) - wanted)
            assert difference.max() <= 1, level
            assert (difference > 0).mean() < 0.01, level
            assert len(np.unique(wanted)) > 2
    return ordered


def run_optimised(model, feeds):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, feeds)


def assert_on_integers(ordered, reading=()):
    """Every operator is a kernel or a movement of integers; `reading` are dtypes allowed beside 8 bits."""
    for binding in Dataflow(ordered).bindings:
        if not is_kernel(binding.value):
            assert op_name(binding.value) in ("reshape", "permute_dims")
            continue
        spec = spec_of(binding.value)
        dtypes = {tensor.dtype for tensor in spec.inputs} - set(reading)
        assert dtypes <= {"uint8", "int8"}, spec
        assert spec.result.dtype in ("uint8", "int8", *reading), spec


# Operators of ONNX Runtime's operator format


def qlinear(op_type, names, dtype, shape=IMAGE, weights=(), domain=MICROSOFT, **attributes):
    """A model of one node that reads x; what its names stand for is in `weights` or here."""
    rng, low = np.random.default_rng(7), np.iinfo(dtype).min
    known = {
        "xs": np.float32(0.0271), "xz": dtype(low + 117), "ys": np.float32(0.037), "yz": dtype(low + 113),
        "cs": np.float32(0.0191), "cz": dtype(low + 90), "ss": np.float32(1 / 256), "sz": dtype(low),
    } | dict(weights)  # fmt: skip
    used = {name: value for name, value in known.items() if name in names.split(" ")}
    feeds = {"x": integers(rng, dtype, shape)}
    made = node(op_type, names, domain=domain, **attributes)
    return graph([made], feeds, used, {"y": dtype}), feeds


CONSTANTS = {"the same": (1, *IMAGE[1:]), "channels": (1, 19, 1, 1), "number": ()}
COUNTED = dict(kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)
UNARY = {
    "average": ("QLinearAveragePool", "x xs xz ys yz", dict(kernel_shape=[3, 3], pads=[1, 1, 1, 1])),
    "padding counts": ("QLinearAveragePool", "x xs xz ys yz", COUNTED),
    "ceil": ("QLinearAveragePool", "x xs xz ys yz", dict(kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)),
    "global average": ("QLinearGlobalAveragePool", "x xs xz ys yz", {}),
    "concat": ("QLinearConcat", "ys yz x xs xz x cs cz", dict(axis=1)),
    "sigmoid": ("QLinearSigmoid", "x xs xz ss sz", {}),
    "leaky relu": ("QLinearLeakyRelu", "x xs xz ys yz", dict(alpha=0.1)),
    "add itself": ("QLinearAdd", "x xs xz x cs cz ys yz", {}),
    "multiply by itself": ("QLinearMul", "x xs xz x cs cz ys yz", {}),
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", UNARY)
def test_operators(name, dtype):
    op_type, names, attributes = UNARY[name]
    assert_on_integers(check(*qlinear(op_type, names, dtype, **attributes)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("constant", ["channels", "number"])
@pytest.mark.parametrize("op_type", ["QLinearAdd", "QLinearMul"])
def test_constants(op_type, constant, dtype):
    c = integers(np.random.default_rng(1), dtype, CONSTANTS[constant])
    assert_on_integers(check(*qlinear(op_type, "x xs xz c cs cz ys yz", dtype, weights={"c": c})))


GEOMETRIES = {
    "plain": ((20, 19, 3, 3), dict(pads=[1, 1, 1, 1])),
    "depthwise": ((19, 1, 3, 3), dict(group=19, strides=[2, 2])),
    "auto_pad": ((7, 19, 3, 2), dict(auto_pad="SAME_UPPER", strides=[2, 1])),
}


def weights_of(dtype, shape, channels, per_channel, zero_points):
    rng, scales = np.random.default_rng(3), (channels,) if per_channel else ()
    middle = np.full(scales, 128 if dtype is np.uint8 else 0, dtype)
    return {
        "w": random_weights(rng, dtype, shape),
        "ws": np.asarray(rng.uniform(0.005, 0.01, scales), np.float32),
        "wz": integers(rng, dtype, scales) if zero_points else middle,
        "b": rng.integers(-9000, 9000, channels).astype(np.int32),
        "ys": np.float32(0.37),
    }


# ONNX Runtime has no QLinear operator for int8 data and uint8 weights.
PAIRS = [(np.uint8, np.int8), (np.uint8, np.uint8), (np.int8, np.int8)]


@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize(("dtype", "weight"), PAIRS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_convolutions(geometry, dtype, weight, per_channel, zero_points):
    shape, attributes = GEOMETRIES[geometry]
    weights = weights_of(weight, shape, shape[0], per_channel, zero_points)
    names = "x xs xz w ws wz ys yz b"
    ordered = check(*qlinear("QLinearConv", names, dtype, weights=weights, domain="", **attributes))
    assert_on_integers(ordered, ("float32",) if zero_points else ())  # the data's sums are floats


@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize(("dtype", "weight"), PAIRS)
@pytest.mark.parametrize("op_type", ["QLinearMatMul", "QGemm"])
def test_products(op_type, dtype, weight, per_channel, zero_points):
    weights = weights_of(weight, (19, 11), 11, per_channel, zero_points)
    names, domain, attributes = "x xs xz w ws wz ys yz", "", {}
    if op_type == "QGemm":
        names, domain, attributes = "x xs xz w ws wz b ys yz", MICROSOFT, dict(transB=1, alpha=0.5)
        weights["w"] = np.ascontiguousarray(weights["w"].T)
    model = qlinear(op_type, names, dtype, (3, 19), weights, domain, **attributes)
    assert_on_integers(check(*model), ("float32",) if zero_points else ())


INTEGER_OPERATORS = {
    "MaxPool": ("x", dict(kernel_shape=[3, 3], pads=[1, 1, 1, 1])),
    "Resize": ("x  scales", dict(mode="nearest")),
    "Resize linear": ("x  scales", dict(mode="linear")),
    "Pad": ("x pads seven", {}),
    "Slice": ("x three nine one", {}),
    "Transpose": ("x", dict(perm=[0, 2, 3, 1])),
    "Reshape": ("x flat", {}),
    "Gather": ("x indices", dict(axis=1)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", INTEGER_OPERATORS)
def test_operators_on_integers(name, dtype):
    names, attributes = INTEGER_OPERATORS[name]
    weights = {
        "scales": np.array([1, 1, 2, 2], np.float32), "pads": int64(0, 0, 1, 1, 0, 0, 2, 0), "seven": dtype(7),
        "three": int64(3), "nine": int64(9), "one": int64(1), "flat": int64(2, -1), "indices": int64(4, 1),
    }  # fmt: skip
    ordered = check(*qlinear(name.split(" ")[0], names, dtype, weights=weights, domain="", **attributes))
    assert_on_integers(ordered)


# Float operators between DequantizeLinear and QuantizeLinear


def between(op_type, dtype, shapes=(IMAGE,), constants=(), outputs=1, scale=0.037, zero_point=113, **attributes):
    """A model that reads integers, dequantises them, applies one operator and quantises its results."""
    rng, low = np.random.default_rng(5), np.iinfo(dtype).min
    nodes, feeds, names = [], {}, []
    weights = {"ys": np.float32(scale), "yz": dtype(low + zero_point)}
    for i, shape in enumerate(shapes):
        feeds[f"x{i}"] = integers(rng, dtype, shape)
        weights |= {f"s{i}": np.float32(0.0271 * (1 + 0.17 * i)), f"z{i}": dtype(low + 117 + 5 * i)}
        nodes.append(node("DequantizeLinear", f"x{i} s{i} z{i}", f"d{i}", f"dequantize{i}"))
        names.append(f"d{i}")
    weights |= {f"c{i}": np.asarray(c) for i, c in enumerate(constants) if c is not None}
    names += [f"c{i}" if c is not None else "" for i, c in enumerate(constants)]
    results = [f"r{i}" for i in range(outputs)]
    nodes.append(helper.make_node(op_type, names, results, name="operator", **attributes))
    nodes += [node("QuantizeLinear", f"r{i} ys yz", f"y{i}", f"quantize{i}") for i in range(outputs)]
    return graph(nodes, feeds, weights, {f"y{i}": dtype for i in range(outputs)}), feeds


ROW = np.random.default_rng(2)
SIGMOID, HALF = dict(scale=1 / 256, zero_point=0), dict(zero_point=0)
WRAPPED = {
    "Relu": {}, "Sigmoid": SIGMOID, "Tanh": dict(scale=1 / 128, zero_point=128), "LeakyRelu": dict(alpha=0.1),
    "HardSwish": {}, "HardSigmoid": SIGMOID, "Abs": {}, "Exp": HALF,
    "Erf": dict(scale=1 / 120, zero_point=128), "Clip": dict(constants=[np.float32(-1), np.float32(1.5)]),
    "PRelu": dict(constants=[real(ROW, 19, 1, 1, low=0)]), "GlobalAveragePool": {},
    "Add": dict(shapes=[IMAGE] * 2), "Sub": dict(shapes=[IMAGE] * 2), "Mul": dict(shapes=[IMAGE] * 2),
    "Mul vector": dict(shapes=[IMAGE, (2, 19, 1, 1)]), "Mul map": dict(shapes=[IMAGE, (2, 1, 9, 8)]),
    "Add channels": dict(constants=[real(ROW, 1, 19, 1, 1)]), "Mul number": dict(constants=[np.float32(1.7)]),
    "Div": dict(constants=[real(ROW, 1, 19, 1, 1, low=0.5)]), "Pow": dict(constants=[np.float32(2)], **HALF),
    "Max": dict(shapes=[IMAGE] * 2), "Add dense": dict(shapes=[(2, 19)] * 2),
    "BatchNormalization": dict(constants=[real(ROW, 19, low=0.5) for _ in range(4)]),
    "MaxPool": dict(kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    "AveragePool": COUNTED,
    "ReduceMean": dict(axes=[2, 3], keepdims=0), "LRN": dict(size=5), "Flatten": {},
    "Concat": dict(shapes=[IMAGE, (2, 5, 9, 8), (2, 16, 9, 8)], axis=1),
    "Resize": dict(constants=[None, np.array([1, 1, 2, 2], np.float32)], mode="nearest"),
    "Pad": dict(constants=[int64(0, 0, 1, 2, 0, 0, 3, 1)]), "Transpose": dict(perm=[0, 2, 3, 1]),
    "Slice": dict(constants=[int64(1), int64(7), int64(2), int64(2)]), "Gather": dict(constants=[int64(3, 1)], axis=1),
    "Slice channels": dict(constants=[int64(2), int64(11), int64(1)]),
    "Split": dict(constants=[int64(7, 12)], outputs=2, axis=1), "Reshape": dict(constants=[int64(2, -1)]),
    "DepthToSpace": dict(shapes=[(1, 16, 5, 4)], blocksize=2),
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", WRAPPED)
def test_operators_between_quantisers(name, dtype):
    assert_on_integers(check(*between(name.split(" ")[0], dtype, **WRAPPED[name])))


def test_a_resize_rounds_as_the_model_says():
    """ONNX Runtime optimises this to an operator on integers, which rounds towards zero; the model does not."""
    constants = [None, np.array([1, 1, 2, 2], np.float32)]
    model = between("Resize", np.uint8, constants=constants, mode="linear")
    assert_on_integers(check(*model, levels=["ORT_DISABLE_ALL"]))
