"""Quantised models: what they become, and that ONNX Runtime agrees to one quantum."""

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

from tests.frontend.running import bindings, calls, check, graph, node, op_counts, random_feeds, random_weights
from tvm_int8.errors import ModelError
from tvm_int8.frontend import load_model

RNG = np.random.default_rng(11)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def integers(dtype, *shape):
    return random_weights(RNG, dtype, shape)


def scalar(value, dtype=np.float32):
    return np.asarray(value, dtype)


def qdq_conv(activation=np.uint8, weight=np.int8, weight_zero=0, per_channel=True):
    """x -> Q -> DQ -> Conv(DQ(w), DQ(b)) -> Relu -> Q -> DQ -> y, as ONNX Runtime's quantiser writes it."""
    channels = 5
    scales = RNG.uniform(0.01, 0.02, channels if per_channel else ()).astype(np.float32)
    weights = {
        "xs": scalar(0.03),
        "xz": scalar(np.iinfo(activation).min + 120, activation),
        "w": integers(weight, channels, 3, 3, 3),
        "ws": scales,
        "wz": np.full(scales.shape, weight_zero, weight),
        "b": RNG.integers(-900, 900, channels).astype(np.int32),
        "bs": (scales * np.float32(0.03)).astype(np.float32).reshape(-1),
        "bz": np.zeros(scales.size, np.int32),
        "ys": scalar(0.05),
        "yz": scalar(np.iinfo(activation).min, activation),
    }
    if not per_channel:
        weights["bs"], weights["bz"] = weights["bs"].reshape(()), weights["bz"].reshape(())
    nodes = [
        node("QuantizeLinear", "x xs xz", "xq", "x_Q"),
        node("DequantizeLinear", "xq xs xz", "xd", "x_DQ"),
        node("DequantizeLinear", "w ws wz", "wd", "w_DQ", axis=0),
        node("DequantizeLinear", "b bs bz", "bd", "b_DQ", axis=0),
        node("Conv", "xd wd bd", "c", "conv1", pads=[1, 1, 1, 1]),
        node("Relu", "c", "r", "relu1"),
        node("QuantizeLinear", "r ys yz", "yq", "y_Q"),
        node("DequantizeLinear", "yq ys yz", "y", "y_DQ"),
    ]
    return graph(nodes, {"x": (1, 3, 7, 7)}, weights)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("activation", [np.uint8, np.int8])
def test_convolution(activation, per_channel):
    module = check(qdq_conv(activation, per_channel=per_channel), atol=0.051)
    assert op_counts(module) == {"quantize": 2, "dequantize": 3, "nn.conv2d": 1, "add": 1, "nn.relu": 1}
    assert {str(call.attrs.out_dtype) for call in calls(module, "quantize")} == {np.dtype(activation).name}
    conv = calls(module, "nn.conv2d")[0]
    values = {binding.var: binding.value for binding in bindings(module)}
    weight = values[conv.args[1]]
    assert weight.op.name == "relax.dequantize"
    data, scale, zero_point = (arg.value.numpy() for arg in weight.args)
    assert data.dtype == np.int8
    assert scale.shape == ((5,) if per_channel else ())
    assert not zero_point.any()
    assert int(weight.attrs.axis) == 0
    bias = calls(module, "add")[0].args[1].value.numpy()
    assert bias.dtype == np.float32
    assert bias.shape == (1, 5, 1, 1)


def test_unsigned_weights_become_signed():
    module = check(qdq_conv(weight=np.uint8, weight_zero=128), atol=0.051)
    data, _, zero_point = (arg.value.numpy() for arg in calls(module, "dequantize")[1].args)
    assert data.dtype == zero_point.dtype == np.int8
    assert not zero_point.any()


def test_weights_quantised_in_the_graph_are_folded():
    weights = {"s": scalar(0.02), "z": scalar(0, np.int8), "w": normal(4, 3, 3, 3)}
    nodes = [
        node("QuantizeLinear", "w s z", "q"),
        node("DequantizeLinear", "q s z", "d"),
        node("Conv", "x d", "y"),
    ]
    module = check(graph(nodes, {"x": (1, 3, 5, 5)}, weights))
    assert op_counts(module) == {"dequantize": 1, "nn.conv2d": 1}


def test_transposed_quantised_weight_stays_quantised():
    weights = {
        "w": integers(np.int8, 4, 6),
        "s": RNG.uniform(0.01, 0.02, 4).astype(np.float32),
        "z": np.zeros(4, np.int8),
        "b": normal(4),
    }
    nodes = [node("DequantizeLinear", "w s z", "d", axis=0), node("Gemm", "x d b", "y", transB=1)]
    module = check(graph(nodes, {"x": (2, 6)}, weights))
    weight = calls(module, "dequantize")[0]
    assert weight.args[0].value.numpy().shape == (6, 4)
    assert int(weight.attrs.axis) == 1
    assert op_counts(module) == {"dequantize": 1, "matmul": 1, "add": 1}


def test_quantised_constant_of_an_addition_is_a_float_constant():
    weights = {"c": integers(np.uint8, 3, 1, 1), "s": scalar(0.02), "z": scalar(7, np.uint8)}
    nodes = [node("DequantizeLinear", "c s z", "d"), node("Add", "x d", "y")]
    assert op_counts(check(graph(nodes, {"x": (1, 3, 5, 5)}, weights))) == {"add": 1}


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_quantised_inputs_and_outputs_keep_their_dtype(dtype):
    weights = {"s": scalar(0.02), "z": scalar(3, dtype), "s2": scalar(0.03)}
    nodes = [
        node("DequantizeLinear", "x s z", "d"),
        node("LeakyRelu", "d", "r"),
        node("QuantizeLinear", "r s2 z", "y"),
    ]
    module = check(graph(nodes, {"x": integers(dtype, 1, 3, 5, 5)}, weights, {"y": dtype}), atol=1)
    assert str(module["main"].params[0].ty.dtype) == np.dtype(dtype).name
    assert str(module["main"].ret_ty.dtype) == np.dtype(dtype).name


def test_per_channel_activations():
    weights = {"s": RNG.uniform(0.01, 0.02, 3).astype(np.float32), "z": integers(np.uint8, 3)}
    nodes = [
        node("QuantizeLinear", "x s z", "q", axis=1),
        node("DequantizeLinear", "q s z", "y", axis=1),
    ]
    check(graph(nodes, {"x": (2, 3, 4, 4)}, weights), atol=0.021)


def test_signals_are_quantised_in_the_shape_their_convolutions_read():
    weights = {
        "s": scalar(0.03),
        "z": scalar(120, np.uint8),
        "ws": scalar(0.01),
        "wz": scalar(0, np.int8),
        "w": integers(np.int8, 4, 3, 3),
        "w2": integers(np.int8, 4, 4, 3),
    }
    nodes = [
        node("QuantizeLinear", "x s z", "xq"),
        node("DequantizeLinear", "xq s z", "xd"),
        node("DequantizeLinear", "w ws wz", "wd"),
        node("Conv", "xd wd", "c", "conv1"),
        node("QuantizeLinear", "c s z", "cq"),
        node("DequantizeLinear", "cq s z", "cd"),
        node("DequantizeLinear", "w2 ws wz", "wd2"),
        node("Conv", "cd wd2", "y", "conv2"),
    ]
    module = check(graph(nodes, {"x": (2, 3, 12)}, weights), atol=0.4)
    values = {binding.var: binding.value for binding in bindings(module)}
    for conv in calls(module, "nn.conv2d"):
        assert {values[argument].op.name for argument in conv.args} == {"relax.dequantize"}
    assert op_counts(module)["reshape"] == 2


def test_16_bit_activations():
    weights = {"s": scalar(0.001), "z": scalar(3000, np.uint16)}
    nodes = [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "y")]
    check(graph(nodes, {"x": (2, 3)}, weights, opset=21), atol=0.0011)


def test_blockwise_weights_become_float():
    weights = {"w": integers(np.int8, 8, 4), "s": RNG.uniform(0.01, 0.02, (2, 4)).astype(np.float32)}
    nodes = [node("DequantizeLinear", "w s", "d", axis=0, block_size=4), node("MatMul", "x d", "y")]
    assert op_counts(check(graph(nodes, {"x": (2, 8)}, weights, opset=21))) == {"matmul": 1}


def test_qlinear_conv():
    weights = {
        "xs": scalar(0.03),
        "xz": scalar(120, np.uint8),
        "ys": scalar(0.1),
        "yz": scalar(5, np.uint8),
        "w": integers(np.int8, 4, 3, 3, 3),
        "ws": RNG.uniform(0.01, 0.02, 4).astype(np.float32),
        "wz": np.zeros(4, np.int8),
        "b": RNG.integers(-900, 900, 4).astype(np.int32),
    }
    made = node("QLinearConv", "x xs xz w ws wz ys yz b", name="conv1", strides=[2, 2])
    module = check(graph([made], {"x": integers(np.uint8, 1, 3, 7, 7)}, weights, {"y": np.uint8}), atol=1)
    assert op_counts(module) == {"dequantize": 2, "nn.conv2d": 1, "add": 1, "quantize": 1}
    by_op = {b.value.op.name: b.var.name for b in bindings(module)}
    assert by_op["relax.nn.conv2d"] == "conv1"


def test_qlinear_matmul():
    weights = {
        "xs": scalar(0.03),
        "xz": scalar(120, np.uint8),
        "ys": scalar(0.1),
        "yz": scalar(5, np.uint8),
        "w": integers(np.int8, 6, 4),
        "ws": RNG.uniform(0.01, 0.02, 4).astype(np.float32),
        "wz": np.zeros(4, np.int8),
    }
    made = node("QLinearMatMul", "x xs xz w ws wz ys yz")
    check(graph([made], {"x": integers(np.uint8, 2, 6)}, weights, {"y": np.uint8}), atol=1)


def test_conv_integer_with_its_scale():
    weights = {"xz": scalar(120, np.uint8), "w": integers(np.int8, 4, 3, 3, 3), "s": scalar(0.001)}
    nodes = [
        node("ConvInteger", "x w xz", "i", "conv"),
        node("Cast", "i", "f", "cast", to=1),
        node("Mul", "f s", "y", "scale"),
    ]
    model, feeds = graph(nodes, {"x": integers(np.uint8, 1, 3, 7, 7)}, weights), {"x": integers(np.uint8, 1, 3, 7, 7)}
    # ONNX Runtime before 1.24 has no ConvInteger for int8 weights.
    module = check(model, feeds, reference=ReferenceEvaluator(model).run(None, feeds))
    assert op_counts(module) == {"dequantize": 2, "nn.conv2d": 1, "multiply": 1}


def test_integer_results_as_outputs():
    weights = {"xz": scalar(120, np.uint8), "w": integers(np.int8, 6, 4)}
    made = node("MatMulInteger", "x w xz")
    check(graph([made], {"x": integers(np.uint8, 2, 6)}, weights, {"y": np.int32}), atol=0)


MICROSOFT = {
    "add": ("QLinearAdd", "x xs xz c cs cz ys yz", {}),
    "mul": ("QLinearMul", "x xs xz c cs cz ys yz", {}),
    "average_pool": ("QLinearAveragePool", "x xs xz ys yz", dict(kernel_shape=[2, 2], strides=[2, 2])),
    "global_average_pool": ("QLinearGlobalAveragePool", "x xs xz ys yz", {}),
    "concat": ("QLinearConcat", "ys yz x xs xz c cs cz", dict(axis=1)),
    "sigmoid": ("QLinearSigmoid", "x xs xz ss sz", {}),
    "leaky_relu": ("QLinearLeakyRelu", "x xs xz ys yz", dict(alpha=0.1)),
    "softmax": ("QLinearSoftmax", "x xs xz ss sz", dict(axis=1, opset=13)),
}


@pytest.mark.parametrize("name", MICROSOFT)
def test_operators_of_onnx_runtime(name):
    op_type, names, attributes = MICROSOFT[name]
    weights = {
        "xs": scalar(0.03),
        "xz": scalar(120, np.uint8),
        "ys": scalar(0.04),
        "yz": scalar(100, np.uint8),
        "cs": scalar(0.02),
        "cz": scalar(90, np.uint8),
        "c": integers(np.uint8, 1, 4, 6, 6),
        "ss": scalar(1 / 256),
        "sz": scalar(0, np.uint8),
    }
    used = {key: value for key, value in weights.items() if key in names.split(" ")}
    made = node(op_type, names, domain="com.microsoft", **attributes)
    check(graph([made], {"x": integers(np.uint8, 1, 4, 6, 6)}, used, {"y": np.uint8}), atol=1)


@pytest.mark.parametrize("is_float", [True, False])
def test_qgemm(is_float):
    weights = {
        "xs": scalar(0.03),
        "xz": scalar(120, np.uint8),
        "w": integers(np.int8, 4, 6),
        "ws": scalar(0.01),
        "wz": scalar(0, np.int8),
        "b": RNG.integers(-900, 900, 4).astype(np.int32),
    }
    names = "x xs xz w ws wz b"
    if not is_float:
        weights |= {"ys": scalar(0.1), "yz": scalar(100, np.uint8)}
        names += " ys yz"
    made = node("QGemm", names, domain="com.microsoft", transB=1)
    outputs = {"y": np.float32 if is_float else np.uint8}
    check(graph([made], {"x": integers(np.uint8, 2, 6)}, weights, outputs), atol=1e-4 if is_float else 1)


def test_dynamic_quantisation_is_refused():
    weights = {"w": integers(np.int8, 4, 3, 3, 3)}
    nodes = [node("DynamicQuantizeLinear", "x", "q s z", "dynamic"), node("ConvInteger", "q w z", "y", "conv")]
    model = graph(nodes, {"x": (1, 3, 7, 7)}, weights, {"y": np.int32})
    with pytest.raises(ModelError, match="DynamicQuantizeLinear 'dynamic': chooses its scale at run time"):
        load_model(model)


@pytest.mark.parametrize("style", ["QDQ", "QOperator"])
def test_model_of_onnx_runtimes_quantiser(style, tmp_path):
    quantization = pytest.importorskip("onnxruntime.quantization")
    nodes = [
        node("Conv", "x w b", "t1", "conv1", pads=[1, 1, 1, 1]),
        node("Relu", "t1", "t2", "relu1"),
        node("MaxPool", "t2", "t3", "pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "t3 w2 b2", "t4", "conv2", pads=[1, 1, 1, 1]),
        node("Add", "t4 t3", "t5", "add"),
        node("GlobalAveragePool", "t5", "t6", "gap"),
        node("Flatten", "t6", "t7", "flat"),
        node("Gemm", "t7 f c", "y", "fc", transB=1),
    ]
    weights = {"w": normal(8, 3, 3, 3), "b": normal(8), "w2": normal(8, 8, 3, 3) / 8, "b2": normal(8)}
    model = graph(nodes, {"x": (1, 3, 8, 8)}, weights | {"f": normal(5, 8), "c": normal(5)})
    (tmp_path / "float.onnx").write_bytes(model.SerializeToString())
    samples = iter([random_feeds(model, seed) for seed in range(8)])
    reader = type("Reader", (quantization.CalibrationDataReader,), {"get_next": lambda self: next(samples, None)})
    quantization.quantize_static(
        *(tmp_path / "float.onnx", tmp_path / "int8.onnx", reader()),
        quant_format=getattr(quantization.QuantFormat, style),
        per_channel=True,
        weight_type=quantization.QuantType.QInt8,
    )
    import onnx

    quantized = onnx.load(tmp_path / "int8.onnx")
    module = check(quantized, random_feeds(model, 99), atol=0.05)
    assert op_counts(module)["nn.conv2d"] == 2
    assert op_counts(module)["matmul"] == 1
