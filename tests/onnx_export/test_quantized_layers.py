"""How QDQ and the layers between are written: parameters, biases, dense layers, scales per channel."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.numpy_calibration import quantize
from tests.small_networks import NETWORKS, Network


class Exported:
    """The graph of an exported model by names."""

    def __init__(self, model: onnx.ModelProto):
        self.nodes = list(model.graph.node)
        self.arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self.producer = {name: made for made in self.nodes for name in made.output}

    def of(self, *op_types: str) -> list[onnx.NodeProto]:
        return [made for made in self.nodes if made.op_type in op_types]

    def constant(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(integers, scale) behind a DequantizeLinear."""
        made = self.producer[name]
        assert made.op_type == "DequantizeLinear"
        return self.arrays[made.input[0]], self.arrays[made.input[1]]


def export(model: onnx.ModelProto, **options) -> Exported:
    return Exported(quantize(model, options).to_onnx())


def test_a_pair_shares_its_parameters():
    found = export(NETWORKS["inception"](), per_channel_activations=False)
    for made in found.of("QuantizeLinear"):
        readers = [other for other in found.of("DequantizeLinear") if other.input[0] == made.output[0]]
        assert readers and all(list(other.input[1:]) == list(made.input[1:]) for other in readers)
        assert found.arrays[made.input[1]].shape == found.arrays[made.input[2]].shape == ()
        assert found.arrays[made.input[2]].dtype == np.uint8


@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_and_biases_are_integers(per_channel):
    options = {"per_channel_activations": False, "per_channel_weights": per_channel}
    found = export(NETWORKS["residual"](), **options)
    layers = found.of("Conv", "Gemm")
    assert len(layers) == 7
    for made in layers:
        data = found.producer[made.input[0]]
        (weight, weight_scale), (bias, bias_scale) = found.constant(made.input[1]), found.constant(made.input[2])
        assert weight.dtype == np.int8 and bias.dtype == np.int32
        assert weight_scale.shape == bias_scale.shape == ((len(weight),) if per_channel else ())
        np.testing.assert_allclose(bias_scale, found.arrays[data.input[1]] * weight_scale, rtol=1e-6)
    assert not found.of("Sum")
    assert len(found.of("Add")) == 2  # the residual ones


def test_float_layers_have_float_biases():
    found = export(NETWORKS["residual"](), exclude=["/conv7", "/gemm22"])
    named = {made.name: made for made in found.nodes}
    for name in ("/conv7", "/gemm22"):
        assert [found.arrays[operand].dtype for operand in named[name].input[1:]] == [np.float32] * 2


def test_dead_channels_do_not_keep_a_layer_in_float():
    """Weights of 1e-34 beside a bias of one: the bias has 1e33 steps, and no weight that matters."""
    net = Network(x=(1, 3, 6, 6))
    y = net.conv(net.relu(net.conv("x", 8)), 8)
    model = net.finish(net.conv(net.relu(y), 4))
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == model.graph.node[2].input[1])
    values = numpy_helper.to_array(weight).copy()
    values[3] *= 1e-34
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    found = export(model, per_channel_activations=False)
    conv = found.of("Conv")[1]
    (weights, _), (bias, scale) = found.constant(conv.input[1]), found.constant(conv.input[2])
    assert not weights[3].any() and weights[2].any()
    expected = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == model.graph.node[2].input[2]))
    np.testing.assert_allclose(bias[3] * scale[3].astype(np.float64), expected[3], rtol=1e-6)


def test_dense_layers_read_integers():
    found = export(NETWORKS["residual"]())
    (gemm,) = found.of("Gemm")
    assert found.producer[gemm.input[0]].op_type == "DequantizeLinear"
    assert found.constant(gemm.input[1])[0].shape == (10, 33)


def test_a_vector_is_not_reshaped_for_a_dense_layer():
    found = export(NETWORKS["dense"]())
    assert not found.of("Reshape")
    assert len(found.of("Gemm")) == 3 and len(found.of("Flatten")) == 1


def test_scales_per_channel_are_kept_apart_from_their_neighbours():
    """ONNX Runtime would fuse them into operators that know one scale per tensor."""
    found = export(NETWORKS["mobile"](), per_channel_activations=True)
    pairs = found.of("QuantizeLinear", "DequantizeLinear")
    by_channel = [made for made in pairs if found.arrays[made.input[1]].ndim and made.input[0] not in found.arrays]
    assert by_channel
    for made in by_channel:
        if made.op_type == "QuantizeLinear":
            assert made.input[0] == "x" or found.producer[made.input[0]].op_type == "Sum"
        else:
            assert {other.op_type for other in found.nodes if made.output[0] in other.input} == {"Sum"}


def test_bytes_are_read_as_they_are():
    net = Network(x=(1, 3, 8, 8))
    model = net.finish(net.relu(net.conv("x", 8)))
    images = [{"x": np.random.default_rng(i).integers(0, 256, (1, 3, 8, 8), np.uint8)} for i in range(4)]
    options = {"input_dtype": "uint8", "input_mean": (100, 120, 140), "input_std": 60}
    exported = quantize(model, {}, images, **options).to_onnx()
    found = Exported(exported)
    assert exported.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    (conv,) = found.of("Conv")
    sources = [made for made in found.of("DequantizeLinear") if made.input[0] == "x"]
    assert len(sources) == 1 and list(found.arrays[sources[0].input[2]]) == [100, 120, 140]
    assert found.constant(conv.input[1])[0].dtype == np.int8
