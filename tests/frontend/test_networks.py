"""Whole networks: real trained ones, and the light models of the onnx package.

The light models' weights are constant, so only their structure is looked at.
"""

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.frontend.running import assert_canonical, layer_names, op_counts, run_onnx, run_relax
from tvm_int8.frontend import load_model

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"

STRUCTURE = {
    "bvlc_alexnet": {"nn.conv2d": 5, "matmul": 3},
    "densenet121": {"nn.conv2d": 121, "nn.batch_norm": 121, "concat": 58, "nn.avg_pool2d": 3},
    "inception_v1": {"nn.conv2d": 57, "concat": 9, "matmul": 1},
    "inception_v2": {"nn.conv2d": 69, "nn.batch_norm": 69, "concat": 10, "matmul": 1},
    "resnet50": {"nn.conv2d": 53, "nn.batch_norm": 53, "nn.adaptive_avg_pool2d": 1, "matmul": 1},
    "shufflenet": {"nn.conv2d": 49, "nn.batch_norm": 49, "permute_dims": 16, "matmul": 1},
    "squeezenet": {"nn.conv2d": 26, "concat": 8, "nn.adaptive_avg_pool2d": 1},
    "vgg19": {"nn.conv2d": 16, "matmul": 3},
    "zfnet512": {"nn.conv2d": 5, "matmul": 3},
}


@pytest.mark.parametrize("name", STRUCTURE)
def test_light_network(name):
    path = LIGHT / f"light_{name}.onnx"
    if not path.exists():
        pytest.skip("this onnx package has no light models")
    module = load_model(path)
    assert_canonical(module)
    counts = op_counts(module)
    for op_name, count in STRUCTURE[name].items():
        assert counts[op_name] == count, op_name
    assert len(module["main"].params) == 1
    assert not {"nn.avg_pool3d", "stack", "sum", "zeros", "full", "expand_dims"} & set(counts)
    convolutions = [node for node in onnx.load(path).graph.node if node.op_type == "Conv"]
    names = set(layer_names(module).values())
    assert {node.name or node.output[0] for node in convolutions} <= names


TRAINED = ("resnet8_cifar10", "resnet20_cifar10", "resnet32_cifar10", "mobilenetv1_025_vww", "yolo_fastest_1.1")


@pytest.mark.parametrize("name", [*TRAINED, "espnet_camvid"])
def test_trained_network_is_imported(name, shared_data):
    proto = onnx.load(shared_data / f"{name}.onnx")
    module = load_model(shared_data / f"{name}.onnx")
    assert_canonical(module)
    counts = op_counts(module)
    kinds = [node.op_type for node in proto.graph.node]
    assert counts["nn.conv2d"] == kinds.count("Conv")
    assert counts["nn.batch_norm"] == kinds.count("BatchNormalization")
    names = set(layer_names(module).values())
    kept = {"Conv", "ConvTranspose", "Gemm", "MaxPool", "AveragePool", "Add", "Concat"}
    assert {node.name for node in proto.graph.node if node.op_type in kept} <= names
    assert list(module["main"].attrs["output_names"]) == [value.name for value in proto.graph.output]


@pytest.mark.parametrize("name", ["resnet8_cifar10", "mobilenetv1_025_vww"])
def test_trained_network_matches_onnx_runtime(name, shared_data):
    path = shared_data / f"{name}.onnx"
    value = onnx.load(path).graph.input[0]
    shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    x = np.random.default_rng(0).uniform(0, 1, shape).astype(np.float32)
    for result, wanted in zip(run_relax(load_model(path), [x]), run_onnx(path, {value.name: x}), strict=True):
        np.testing.assert_allclose(result, wanted, atol=1e-4, rtol=1e-4)
