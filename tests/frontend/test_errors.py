"""Every way a model can be wrong ends in one clear ModelError."""

import contextlib

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.frontend.running import graph, node, one_node
from tvm_int8.errors import ModelError
from tvm_int8.frontend import load_model
from tvm_int8.frontend.messages import reason_of


def fails(model, *parts, input_shapes=None):
    with pytest.raises(ModelError) as caught:
        load_model(model, input_shapes)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    return caught.value


def test_missing_file(tmp_path):
    fails(tmp_path / "no.onnx", "no.onnx", "no such file")


def test_directory(tmp_path):
    fails(tmp_path, "is a directory")


def test_empty_file(tmp_path):
    (tmp_path / "empty.onnx").write_bytes(b"")
    fails(tmp_path / "empty.onnx", "the file is empty")


def test_truncated_file(tmp_path):
    data = one_node("Conv", (1, 3, 8, 8), np.ones((4, 3, 3, 3), np.float32)).SerializeToString()
    (tmp_path / "cut.onnx").write_bytes(data[: len(data) // 2])
    fails(tmp_path / "cut.onnx", "truncated")


@pytest.mark.parametrize("data", [b"hello, world, this is no model", b"\x89PNG\r\n\x1a\n" + bytes(64), b""])
def test_not_onnx(data, tmp_path):
    fails(data)
    (tmp_path / "model.onnx").write_bytes(data)
    fails(tmp_path / "model.onnx", "model.onnx")


def test_empty_proto():
    fails(onnx.ModelProto(), "holds no ONNX graph")


def test_other_objects():
    fails(42, "builtins.int", "ModelProto")
    fails(None, "NoneType")


def test_missing_external_data(tmp_path):
    model = one_node("Conv", (1, 3, 8, 8), np.ones((8, 3, 3, 3), np.float32))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=16)
    proto = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    fails(proto, "weight 'c0'", "another file")
    (tmp_path / "w.bin").unlink()
    fails(tmp_path / "m.onnx", "external data")


def test_weight_of_the_wrong_size():
    model = one_node("Conv", (1, 3, 8, 8), np.ones((8, 3, 3, 3), np.float32))
    model.graph.initializer[0].dims[0] = 9
    fails(model, "weight 'c0'", "do not fit")


def test_invalid_graph():
    fails(graph([node("Relu", "nothing", "y")], {"x": (2,)}), "nothing")
    fails(one_node("Relu", (2, 3), frobnicate=1), "frobnicate")


@pytest.mark.parametrize("domain", ["", "acme.ops"])
def test_unknown_operator_is_named(domain):
    model = graph([node("Frobnicate", name="layer7/frob", domain=domain)], {"x": (2, 3)})
    model.opset_import.append(helper.make_opsetid("acme.ops", 1))
    fails(model, "Frobnicate", "'layer7/frob'", f"'{domain or 'ai.onnx'}'")


def test_known_but_unsupported_operator():
    weights = {"w": np.ones((1, 8, 4), np.float32), "r": np.ones((1, 8, 2), np.float32)}
    model = graph([node("LSTM", "x w r", name="rnn", hidden_size=2)], {"x": (3, 1, 4)}, weights)
    fails(model, "LSTM", "'rnn'", "'ai.onnx'")


def test_unused_unknown_operator_does_no_harm():
    model = graph([node("Relu"), node("NonZero", "x", "unused")], {"x": (2, 3)})
    load_model(model)


def test_data_dependent_shapes():
    fails(graph([node("NonZero")], {"x": (2, 3)}, outputs={"y": np.int64}), "NonZero 'the/node'", "depends on the data")
    model = graph([node("Reshape", "x s")], {"x": (2, 3), "s": np.zeros(1, np.int64)})
    fails(model, "Reshape 'the/node'", "shape is computed from the data")


def test_symbolic_dimension():
    model = graph([node("Relu")], {"x": ("batch", 3, "height", 224)})
    fails(model, "input 'x'", "dimension 0 ('batch')", 'input_shapes={"x": (1, 3, 224, 224)}')
    fails(graph([node("Relu")], {"x": (None, 7)}), "dimension 0", 'input_shapes={"x": (1, 7)}')


def test_wrong_input_shapes():
    model = graph([node("Relu")], {"x": ("batch", 3)})
    fails(model, "'z'", "'x'", input_shapes={"z": (1, 3)})
    fails(model, "[1, 4]", "[batch, 3]", input_shapes={"x": (1, 4)})
    fails(model, "[1]", input_shapes={"x": (1,)})
    fails(model, "positive", input_shapes={"x": (0, 3)})


def test_unsupported_dtypes():
    fails(graph([node("Identity")], {"x": np.zeros(2, np.complex64)}, outputs={"y": np.complex64}), "complex64")
    text = graph([node("Identity")], {"x": np.zeros(2, object)}, outputs={"y": object})
    fails(text, "string")


def test_shapes_that_do_not_fit():
    weight = np.ones((8, 3, 3, 3), np.float32)
    fails(one_node("Conv", (1, 4, 8, 8), weight), "4 channels", "the/node")
    fails(one_node("Conv", (1, 3, 2, 8), weight), "window of [3, 3]", "input of [2, 8]")
    fails(one_node("MaxPool", (1, 3, 2, 8), kernel_shape=[3, 3]), "window of [3, 3]")
    fails(one_node("Conv", (1, 3, 8, 8), weight, strides=[1]), "differ in length")
    fails(one_node("Reshape", (2, 3), np.asarray([4, 2])), "[2, 3] to [4, 2]")
    fails(one_node("Split", (2, 4), axis=3), "axis 3")
    fails(graph([node("Add", "a b")], {"a": (2, 3), "b": (2, 4)}), "Add 'the/node'", "[2, 3] and [2, 4]")
    error = fails(graph([node("MatMul", "a b")], {"a": (2, 3), "b": (2, 4)}), "shape [2, 3], [2, 4]", "MatMul")
    assert error.__cause__ is not None


@pytest.mark.parametrize("seed", range(8))
def test_damaged_bytes_never_escape_as_another_error(seed):
    weights = np.ones((4, 3, 3, 3), np.float32)
    data = bytearray(one_node("Conv", (1, 3, 8, 8), weights, strides=[2, 2]).SerializeToString())
    rng = np.random.default_rng(seed)
    for _ in range(20):
        damaged = data.copy()
        damaged[rng.integers(120)] = rng.integers(256)
        with contextlib.suppress(ModelError):
            load_model(bytes(damaged))


def test_messages_are_readable():
    error = ValueError("In ir.Op(span=None)\nthe LHS has shape R.shape([2, 3]) and T.int64(4) rows")
    assert reason_of(error) == "the LHS has shape [2, 3] and 4 rows"
    assert reason_of(ValueError("# Metadata omitted")) == "ValueError"
    assert len(reason_of(ValueError("word " * 100))) < 210


def test_training_mode_batch_norm():
    ones = np.ones(3, np.float32)
    fails(one_node("BatchNormalization", (1, 3, 4, 4), ones, ones, ones, ones, training_mode=1), "training mode")


def test_used_indices_of_max_pool():
    made = node("MaxPool", "x", "y i", kernel_shape=[2, 2])
    fails(graph([made], {"x": (1, 1, 4, 4)}, outputs={"y": np.float32, "i": np.int64}), "output 'i' is used")
