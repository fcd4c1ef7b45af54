"""Networks in PyTorch compute what the float network and its simulation in integers' values do."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax

torch = pytest.importorskip("torch", reason="torch is not installed")

import tvm_int8  # noqa: E402
from tests.small_networks import NETWORKS, draw  # noqa: E402
from tvm_int8 import QuantizationConfig, pipeline  # noqa: E402
from tvm_int8.errors import ModelError  # noqa: E402
from tvm_int8.finetuning.torch_network import TorchNetwork  # noqa: E402
from tvm_int8.frontend import load_model  # noqa: E402
from tvm_int8.passes.dataflow import rebuild  # noqa: E402
from tvm_int8.passes.expressions import op_name  # noqa: E402
from tvm_int8.quantization.sqnr import sqnr_db  # noqa: E402

onnxruntime = pytest.importorskip("onnxruntime")


def run(network: TorchNetwork, batch: dict[str, np.ndarray]) -> list[np.ndarray]:
    with torch.no_grad():
        return [out.numpy() for out in network(*(torch.from_numpy(batch[name]) for name in network.inputs))]


@pytest.mark.parametrize("name", NETWORKS)
def test_float_network(name):
    model = NETWORKS[name]()
    network = TorchNetwork(pipeline.canonical_float()(load_model(model, None)))
    (batch,) = draw(model, 1, 0)
    wanted = onnxruntime.InferenceSession(model.SerializeToString()).run(None, batch)
    for out, reference in zip(run(network, batch), wanted, strict=True):
        assert sqnr_db(reference, out) > 110


@pytest.mark.parametrize("name", ["residual", "mobile", "decoder"])
def test_rounds_as_the_compiled_network_does(name):
    model = NETWORKS[name]()
    batches = draw(model, 3, 0)
    config = QuantizationConfig(bits={"weights": {"*": 3}, "activations": {"*": 5}}, rounding="nearest")
    quantized = tvm_int8.quantize(model, batches, config, progress=False)
    module = tvm_int8.compile(quantized, num_threads=1)
    outputs = run(TorchNetwork(quantized.float_mod, quantized.quantizers), batches[0])
    wanted = module.run(batches[0])
    for info, out in zip(module.outputs, outputs, strict=True):
        assert sqnr_db(wanted[info.name], out) > 30  # where values lie between two integers, float32 sums decide


@pytest.mark.parametrize("name", ["residual", "mobile", "decoder"])
def test_any_number_of_samples(name):
    model = NETWORKS[name]()
    network = TorchNetwork(pipeline.canonical_float()(load_model(model, None)))
    first, second = draw(model, 2, 0)
    both = run(network, {name: np.concatenate([first[name], second[name]]) for name in first})
    for whole, *parts in zip(both, run(network, first), run(network, second), strict=True):
        np.testing.assert_allclose(whole, np.concatenate(parts), rtol=1e-3, atol=1e-4)


def test_unknown_operators_are_named_together():
    mod = pipeline.canonical_float()(load_model(NETWORKS["residual"](), None))

    def unknown(_binding, value, _new):
        if op_name(value) in ("nn.relu", "nn.max_pool2d"):
            return relax.op.tan(value.args[0]) if op_name(value) == "nn.relu" else relax.op.atan(value)
        return None

    with pytest.raises(ModelError, match=r"atan \(layer '.+'\)") as caught:
        TorchNetwork(rebuild(mod, unknown))
    assert "tan (layer" in str(caught.value)
