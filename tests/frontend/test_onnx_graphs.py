"""What becomes of whole graphs: names, folding, control flow, dtypes, old files."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.frontend.running import (
    bindings,
    calls,
    check,
    graph,
    layer_names,
    node,
    one_node,
    op_counts,
    random_feeds,
    run_onnx,
    run_relax,
)
from tvm_int8.frontend import load_model

RNG = np.random.default_rng(3)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def ints(*values):
    return np.asarray(values, np.int64)


def test_variables_are_named_after_nodes():
    nodes = [
        node("Conv", "in:0 w b", "t1", "/layer1/conv.0/Conv"),
        node("BatchNormalization", "t1 g g g v", "t2", "/layer1/bn/BatchNormalization"),
        node("Relu", "t2", "t3", "/layer1/Relu"),
        node("MaxPool", "t3", "t4", "/pool", kernel_shape=[2, 2]),
        node("Add", "t4 t4", "out.1", "/Add"),
    ]
    weights = {"w": normal(4, 3, 3, 3), "b": normal(4), "g": normal(4), "v": np.ones(4, np.float32)}
    module = check(graph(nodes, {"in:0": (1, 3, 8, 8)}, weights, ["out.1"]))
    function = module["main"]
    assert list(function.attrs["input_names"]) == ["in:0"]
    assert list(function.attrs["output_names"]) == ["out.1"]
    assert function.params[0].name == "in_0"
    names = layer_names(module)
    assert names["layer1_conv_0_Conv"] == names["layer1_conv_0_Conv_bias"] == "/layer1/conv.0/Conv"
    assert names["layer1_bn_BatchNormalization"] == "/layer1/bn/BatchNormalization"
    assert (names["pool"], names["Add"]) == ("/pool", "/Add")
    by_name = {binding.var.name: binding.value for binding in bindings(module)}
    assert by_name["layer1_conv_0_Conv"].op.name == "relax.nn.conv2d"
    assert by_name["Add"].op.name == "relax.add"


def test_nodes_without_a_name_are_named_after_their_output():
    model = graph([node("Relu", "x", "42", "")], {"x": (2,)}, outputs=["42"])
    assert layer_names(check(model)) == {"n42": "42"}


def test_two_nodes_of_one_name_stay_apart():
    module = check(graph([node("Relu", "x", "t"), node("Sigmoid", "t", "y")], {"x": (2, 3)}))
    assert sorted(layer_names(module)) == ["the_node", "the_node_1"]


def test_several_outputs_are_a_tuple():
    nodes = [node("Relu", "x", "a", "a"), node("Sigmoid", "a", "b", "b"), node("Tanh", "x", "c", "c")]
    module = check(graph(nodes, {"x": (2, 3)}, outputs=["b", "a", "x2"][:2]))
    assert list(module["main"].attrs["output_names"]) == ["b", "a"]
    assert "tanh" not in op_counts(module)


def test_an_input_or_a_constant_may_be_an_output():
    check(graph([node("Identity", "x", "y"), node("Relu", "w", "z")], {"x": (2, 3)}, {"w": normal(4)}, ["y", "z"]))


def test_identity_dropout_and_float_casts_vanish():
    nodes = [
        node("Identity", "x", "a"),
        node("Dropout", "a", "b"),
        node("Cast", "b", "c", to=onnx.TensorProto.DOUBLE),
        node("Cast", "c", "d", to=onnx.TensorProto.FLOAT),
        node("Relu", "d", "y"),
    ]
    assert op_counts(check(graph(nodes, {"x": (2, 3)}))) == {"nn.relu": 1}


def test_dropout_mask_lets_everything_through():
    check(graph([node("Dropout", "x", "y m")], {"x": (2, 3)}, outputs={"y": np.float32, "m": np.bool_}))


def test_shape_arithmetic_is_folded():
    """``x.view(x.size(0), -1)`` and ``interpolate(x, scale_factor=2)`` as PyTorch writes them."""
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s zero", "n", axis=0),
        node("Unsqueeze", "n axes", "n1"),
        node("Concat", "n1 minus", "target", axis=0),
        node("Reshape", "x target", "flat"),
        node("Slice", "s two four", "hw"),
        node("Cast", "hw", "hwf", to=1),
        node("Mul", "hwf twice", "hw2"),
        node("Floor", "hw2", "hw3"),
        node("Cast", "hw3", "hw4", to=7),
        node("Slice", "s start two", "nc"),
        node("Concat", "nc hw4", "sizes", axis=0),
        node("Resize", "x   sizes", "big", coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
    ]
    weights = {"zero": np.int64(0), "axes": ints(0), "minus": ints(-1), "two": ints(2), "four": ints(4)}
    weights |= {"twice": np.float32(2), "start": ints(0)}
    module = check(graph(nodes, {"x": (2, 3, 4, 5)}, weights, ["flat", "big"]))
    assert op_counts(module) == {"reshape": 1, "image.resize2d": 1}


def test_weights_made_by_nodes_are_constants():
    value = helper.make_tensor("v", onnx.TensorProto.FLOAT, [1], [0.25])
    nodes = [
        node("ConstantOfShape", "shape", "w", value=value),
        node("Constant", "", "f", value_float=2.0),
        node("Mul", "w f", "w2"),
        node("Conv", "x w2", "y"),
    ]
    del nodes[1].input[:]
    module = check(graph(nodes, {"x": (1, 3, 5, 5)}, {"shape": ints(4, 3, 3, 3)}))
    assert op_counts(module) == {"nn.conv2d": 1}


def test_scale_and_shift_given_as_unsqueeze_mul_add():
    nodes = [
        node("Unsqueeze", "s", "s1", axes=[1, 2]),
        node("Mul", "x s1", "m", "scale"),
        node("Unsqueeze", "b", "b1", axes=[1, 2]),
        node("Add", "m b1", "y", "shift"),
    ]
    module = check(graph(nodes, {"x": (1, 4, 5, 5)}, {"s": normal(4), "b": normal(4)}, opset=9))
    assert op_counts(module) == {"multiply": 1, "add": 1}


def test_broadcast_attribute_of_opset_6():
    model = graph([node("Add", "x b", broadcast=1, axis=1)], {"x": (2, 4, 3, 3)}, {"b": normal(4)}, opset=6)
    feeds = random_feeds(model)
    weight = numpy_helper.to_array(model.graph.initializer[0])
    check(model, feeds, reference=[feeds["x"] + weight.reshape(1, 4, 1, 1)])


def test_initialisers_that_are_also_inputs_are_constants():
    model = graph([node("Conv", "x w")], {"x": (1, 3, 5, 5), "w": (4, 3, 3, 3)}, {"w": normal(4, 3, 3, 3)})
    module = check(model)
    assert [parameter.name for parameter in module["main"].params] == ["x"]


def test_zero_padding_becomes_the_convolutions():
    pads = ints(0, 0, 0, 1, 0, 0, 1, 2)
    nodes = [node("Pad", "x p", "t"), node("Conv", "t w", "y", pads=[1, 0, 0, 0], strides=[2, 2])]
    module = check(graph(nodes, {"x": (1, 3, 8, 8)}, {"p": pads, "w": normal(4, 3, 3, 3)}))
    assert op_counts(module) == {"nn.conv2d": 1}
    assert list(calls(module, "nn.conv2d")[0].attrs.padding) == [1, 1, 1, 2]


@pytest.mark.parametrize("fill", [1.0, 0.0])
def test_other_padding_stays(fill):
    pads = ints(0, 1, 0, 1, 0, 0, 1, 2) if fill == 0.0 else ints(0, 0, 0, 1, 0, 0, 1, 2)
    channels = 4 if fill == 0.0 else 3
    nodes = [node("Pad", "x p v", "t"), node("Conv", "t w", "y")]
    weights = {"p": pads, "v": np.float32(fill), "w": normal(4, channels, 3, 3)}
    assert op_counts(check(graph(nodes, {"x": (1, 3, 8, 8)}, weights))) == {"nn.pad": 1, "nn.conv2d": 1}


def test_swish_is_silu():
    nodes = [node("Sigmoid", "x", "s"), node("Mul", "x s", "y")]
    assert op_counts(check(graph(nodes, {"x": (2, 3)}))) == {"nn.silu": 1}


@pytest.mark.parametrize("how", ["pool", "mean", "window"])
def test_global_average_pool_has_one_form(how):
    made = {
        "pool": node("GlobalAveragePool"),
        "mean": node("ReduceMean", axes=[2, 3]),
        "window": node("AveragePool", kernel_shape=[5, 6]),
    }[how]
    assert op_counts(check(graph([made], {"x": (1, 3, 5, 6)}))) == {"nn.adaptive_avg_pool2d": 1}


def test_reshapes_collapse():
    nodes = [node("Reshape", "x a", "t"), node("Flatten", "t", "u"), node("Unsqueeze", "u d", "y")]
    module = check(graph(nodes, {"x": (2, 3, 4, 5)}, {"a": ints(2, 60), "d": ints(2)}))
    assert op_counts(module) == {"reshape": 1}


def test_transposing_extents_of_one_is_a_reshape():
    assert op_counts(check(one_node("Transpose", (1, 6, 1, 1), perm=[0, 2, 3, 1]))) == {"reshape": 1}


def test_network_over_signals_has_no_reshape_between_its_convolutions():
    nodes = [
        node("Conv", "x w b", "t1", "conv1", pads=[1, 1]),
        node("BatchNormalization", "t1 b b b v", "t2", "bn1"),
        node("Relu", "t2", "t3", "relu1"),
        node("MaxPool", "t3", "t4", "pool", kernel_shape=[2], strides=[2]),
        node("Conv", "t4 w2", "t5", "conv2", pads=[1, 1]),
        node("Add", "t5 t4", "t6", "add"),
        node("GlobalAveragePool", "t6", "t7", "gap"),
        node("Flatten", "t7", "y", "flat"),
    ]
    weights = {"w": normal(6, 3, 3), "b": normal(6), "v": np.ones(6, np.float32), "w2": normal(6, 6, 3)}
    module = check(graph(nodes, {"x": (2, 3, 16)}, weights))
    assert op_counts(module)["reshape"] == 2
    assert {"conv1", "bn1", "relu1", "pool", "conv2", "add", "gap"} <= set(layer_names(module))


@pytest.mark.parametrize("taken", [True, False])
def test_constant_condition_takes_its_branch(taken):
    def branch(op_type, name):
        return helper.make_graph(
            [node(op_type, "x", name, f"inner_{op_type}")], name, [], [helper.make_tensor_value_info(name, 1, None)]
        )

    made = node("If", "c", "y", "choice", then_branch=branch("Relu", "a"), else_branch=branch("Sigmoid", "b"))
    module = check(graph([made], {"x": (2, 3)}, {"c": np.asarray(taken)}))
    assert op_counts(module) == {"nn.relu" if taken else "sigmoid": 1}
    assert next(iter(layer_names(module).values())).startswith("choice/inner_")


def test_local_functions_are_inlined():
    body = [
        helper.make_node("Mul", ["a", "a"], ["t"], name="square"),
        helper.make_node("LeakyRelu", ["t"], ["r"], name="act"),
    ]
    body[1].attribute.add(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
    function = helper.make_function("local", "Block", ["a"], ["r"], body, [helper.make_opsetid("", 17)], ["slope"])
    model = graph([node("Block", "x", "y", "block", domain="local", slope=0.3)], {"x": (2, 3)})
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("local", 1))
    assert list(layer_names(check(model)).values()) == ["block/square", "block/act"]


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_float_widths_become_float32(dtype):
    def build(width):
        weights = {"w": weight.astype(width), "c": np.asarray(0.5, width)}
        nodes = [
            node("Conv", "x w", "t"),
            node("Mul", "t c", "u"),
            node("Cast", "u", "v", to=1),
            node("Relu", "v", "y"),
        ]
        return graph(nodes, {"x": np.zeros((1, 3, 5, 5), width)}, weights)

    weight = normal(4, 3, 3, 3).astype(dtype)
    model = build(dtype)
    feeds = random_feeds(model)
    single = build(np.float32)
    module = check(model, feeds, reference=run_onnx(single, {"x": feeds["x"].astype(np.float32)}))
    assert str(module["main"].params[0].ty.dtype) == "float32"
    assert "astype" not in op_counts(module)


def test_integer_and_bool_inputs_keep_their_dtype():
    nodes = [node("Cast", "i", "f", to=1), node("Where", "m f x", "y")]
    inputs = {"i": np.zeros((2, 3), np.uint8), "m": np.zeros((2, 3), bool), "x": (2, 3)}
    module = check(graph(nodes, inputs))
    assert [str(parameter.ty.dtype) for parameter in module["main"].params] == ["uint8", "bool", "float32"]


def test_int64_constants_stay_int64():
    check(graph([node("Add", "i c")], {"i": np.zeros((2,), np.int64)}, {"c": ints(1 << 40, 2)}, {"y": np.int64}))


def test_external_data(tmp_path):
    model = graph([node("Conv", "x w")], {"x": (1, 8, 9, 9)}, {"w": normal(16, 8, 3, 3)})
    feeds = random_feeds(model)
    expected = run_onnx(model, feeds)
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=16)
    assert (tmp_path / "weights.bin").exists()
    for given in (path, str(path)):
        np.testing.assert_allclose(run_relax(load_model(given), feeds.values())[0], expected[0], atol=1e-4)


def test_bytes_and_proto():
    model = one_node("Relu", (2, 3))
    before = model.SerializeToString()
    assert op_counts(load_model(before)) == op_counts(load_model(model)) == {"nn.relu": 1}
    assert model.SerializeToString() == before


def test_symbolic_dimensions_are_given_by_name():
    model = graph([node("Shape", "x", "s"), node("ConstantOfShape", "s", "o"), node("Add", "x o")], {"x": ("N", 3, 4)})
    module = load_model(model, {"x": (5, 3, 4)})
    assert [int(dim) for dim in module["main"].params[0].ty.shape] == [5, 3, 4]


def test_importing_the_result_again_changes_nothing():
    nodes = [
        node("Conv", "x w b", "t1", "/a/Conv", pads=[1, 1, 1, 1]),
        node("BatchNormalization", "t1 b b b v", "t2", "/a/bn"),
        node("Relu", "t2", "t3", "/a/Relu"),
        node("GlobalAveragePool", "t3", "t4", "/pool"),
        node("Flatten", "t4", "t5", "/flat"),
        node("Gemm", "t5 f b2", "y", "/fc", transB=1),
        node("Sigmoid", "t5", "z", "/gate"),
    ]
    weights = {"w": normal(6, 3, 3, 3), "b": normal(6), "v": np.ones(6, np.float32), "f": normal(2, 6), "b2": normal(2)}
    once = check(graph(nodes, {"x": (1, 3, 8, 8)}, weights, ["y", "z"]))
    twice = load_model(once)
    assert [b.var.name for b in bindings(once)] == [b.var.name for b in bindings(twice)]
    assert op_counts(once) == op_counts(twice)
    for name in ("input_names", "output_names"):
        assert list(once["main"].attrs[name]) == list(twice["main"].attrs[name])
    assert layer_names(once) == layer_names(twice)
