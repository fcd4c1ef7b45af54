"""Names and borders of the exported graph: the user's inputs, outputs and layers, and nothing that nobody reads."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.frontend.running import graph, node, random_feeds, run_onnx
from tests.numpy_calibration import imported, quantize
from tests.small_networks import NETWORKS
from tvm_int8.errors import ModelError
from tvm_int8.onnx_export import export, export_onnx
from tvm_int8.onnx_export.writer import OPSET


def names(values) -> list[str]:
    return [value.name for value in values]


def test_inputs_outputs_and_layers_have_the_names_of_the_model():
    weights = {"w": np.ones((2, 3, 1, 1), np.float32)}
    nodes = [node("Conv", "data/image:0 w", "1", "/stem/conv"), node("Relu", "1", "out/2", "/stem/relu")]
    model = graph(nodes, {"data/image:0": (1, 3, 4, 4)}, weights, ["out/2"])
    found = quantize(model).to_onnx().graph
    assert names(found.input) == ["data/image:0"]
    assert names(found.output) == ["out/2"]
    named = {made.name: made.op_type for made in found.node}
    assert named["/stem/conv"] == "Conv" and named["/stem/relu"] == "Relu"
    assert len(named) == len(found.node)


def test_shapes_and_dtypes_are_declared():
    nodes = [node("Conv", "x w", "a", "conv"), node("ArgMax", "a", "y", "where", axis=1)]
    model = graph(nodes, {"x": (2, 3, 4, 5)}, {"w": np.ones((4, 3, 1, 1), np.float32)}, {"y": "int64"})
    found = export_onnx(imported(model))
    kind = found.graph.output[0].type.tensor_type
    assert [dim.dim_value for dim in kind.shape.dim] == [2, 1, 4, 5]
    assert kind.elem_type == onnx.TensorProto.INT64
    assert found.opset_import[0].version == OPSET


def test_one_tensor_as_two_outputs_and_an_input_as_output():
    nodes = [node("Relu", "x", "a", "relu"), node("Identity", "a", "b"), node("Identity", "x", "c")]
    model = graph(nodes, {"x": (1, 2, 3, 3)}, {}, ["a", "b", "c"])
    feeds = random_feeds(model)
    exported = export_onnx(imported(model))
    assert names(exported.graph.output) == ["a", "b", "c"]
    for expected, found in zip(run_onnx(model, feeds), run_onnx(exported, feeds), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_names_that_collide_with_made_up_ones():
    """The first node's output and the second's name become the same variable."""
    nodes = [node("Relu", "x", "x_quantized", "x"), node("Conv", "x_quantized w", "y", "x_quantized")]
    model = graph(nodes, {"x": (1, 3, 4, 4)}, {"w": np.ones((2, 3, 1, 1), np.float32)})
    found = quantize(model).to_onnx().graph
    tensors = [name for made in found.node for name in made.output] + names(found.input) + names(found.initializer)
    assert len(tensors) == len(set(tensors))
    assert len(names(found.node)) == len(set(names(found.node)))


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_is_left_over(name):
    found = quantize(NETWORKS[name]()).to_onnx().graph
    read = {name for made in found.node for name in made.input} | set(names(found.output))
    assert {name for made in found.node for name in made.output} <= read
    assert set(names(found.initializer)) <= read


def test_too_large_a_model(monkeypatch):
    monkeypatch.setattr(export, "_LARGEST_BYTES", 1000)
    with pytest.raises(ModelError, match="at most 2 GiB"):
        export_onnx(imported(NETWORKS["residual"]()))


def test_an_invalid_model_is_not_handed_out(monkeypatch):
    """A rule that is wrong; the checker finds it."""
    monkeypatch.setitem(export.RULES, "nn.relu", lambda out, call: out.emit("Relu", call.args[0], slope=1.0))
    with pytest.raises(ModelError, match="is no valid ONNX"):
        export_onnx(imported(graph([node("Relu")], {"x": (1, 2, 3, 3)})))
