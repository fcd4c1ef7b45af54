"""The zoo's networks: as their papers count them, healthy, and, scaled down, compiled as exactly as by ONNX Runtime."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
import pytest

from benchmarks import metrics, networks, peers
from benchmarks.compare import FP32_TOLERANCE
from benchmarks.images import synthetic_images
from benchmarks.zoo import ZOO, numpy_layers
from benchmarks.zoo.builder import GraphBuilder

pytest.importorskip("onnxruntime")

CALIBRATION, CHECKS = 8, 4
MAC_OPERATORS = ("conv", "dense", "matmul", "gemm")

SCALED = {
    "resnet18_v1": dict(image=64, width=0.25),
    "resnet50_v1": dict(image=64, width=0.25, depth=0.25, batch=2),
    "resnext50": dict(image=64, width=0.25, depth=0.25),
    "inception_v3": dict(image=107, width=0.25),
    "inception_v4": dict(image=107, width=0.25, depth=0.25),
    "mobilenet_v1": dict(image=96, width=0.25),
    "mobilenet_v2": dict(image=64, width=0.5),
    "mobilenet_v3_large": dict(image=64, width=0.5),
    "efficientnet_b0": dict(image=64, width=0.5, depth=0.5),
    "vgg16": dict(image=64, width=0.125),
    "squeezenet1_1": dict(image=67, width=0.5),
    "densenet121_v1": dict(image=64, width=0.25, depth=0.1),
    "shufflenet_v2": dict(image=64, width=0.5, depth=0.5),
    "ssd_vgg16": dict(width=0.125),
    "ssd_mobilenet_v1": dict(image=128, width=0.25),
    "yolov3_tiny": dict(image=96, width=0.25),
    "deeplab_v3": dict(image=97, width=0.25),
    "unet": dict(image=64, width=0.25),
    "espcn": dict(image=48, width=0.5),
    "fsrcnn": dict(image=48, width=0.5),
    "edsr": dict(image=48, width=0.5, blocks=2),
}
"""Small enough to compile in a few seconds."""

SCALINGS = {
    "resnet101_v1": "resnet50_v1",
    "resnet152_v1": "resnet50_v1",
    "mobilenet_v1_050": "mobilenet_v1",
    "mobilenet_v1_025": "mobilenet_v1",
}
"""Networks that are another one with more blocks or fewer channels: scaled down, they would be the same."""

QUICK = ("espcn", "yolov3_tiny", "edsr")

FP32_ELSEWHERE = {
    "resnet18_v1": "residual of the small networks",
    "inception_v4": "inception_v3",
    "vgg16": "ssd_vgg16",
    "squeezenet1_1": "light squeezenet",
    "ssd_mobilenet_v1": "mobilenet_v1",
}
"""Networks whose layers are compiled in FP32 in another one."""

NAMES = (*(name for name in SCALED if name not in FP32_ELSEWHERE), *FP32_ELSEWHERE)
"""Both tests of a network are neighbours: those with one alone are the last."""

COUNTS = {  # millions of parameters, running means and variances of batch norms among them
    "resnet18_v1": (20, 11.7),
    "resnet50_v1": (53, 25.6),
    "resnet101_v1": (104, 44.7),
    "resnet152_v1": (155, 60.3),
    "resnext50": (53, 25.1),
    "inception_v3": (94, 23.9),
    "inception_v4": (149, 42.7),
    "mobilenet_v1": (27, 4.25),
    "mobilenet_v2": (52, 3.54),
    "mobilenet_v3_large": (62, 5.51),
    "efficientnet_b0": (81, 5.33),
    "squeezenet1_1": (26, 1.24),
    "densenet121_v1": (120, 8.06),
    "shufflenet_v2": (56, 2.29),
    "yolov3_tiny": (13, 8.86),
}
"""Convolutions and parameters of classifiers and detectors whose weights do not depend on the size of the image."""


def inputs_of(model: onnx.ModelProto, count: int, seed: int) -> list[np.ndarray]:
    batch, *shape = (dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim)
    drawn = synthetic_images(count * batch, tuple(shape), seed)
    return [np.concatenate(drawn[i * batch : (i + 1) * batch]) for i in range(count)]


@dataclass
class Scaled:
    """One network and its inputs."""

    name: str
    model: onnx.ModelProto

    @cached_property
    def calibration(self) -> list[np.ndarray]:
        return inputs_of(self.model, CALIBRATION, 0)

    @cached_property
    def inputs(self) -> list[np.ndarray]:
        return inputs_of(self.model, CHECKS, 1)


def marked(names) -> list:
    """Parameters: the names, those not quick marked slow."""
    return [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in names]


@pytest.fixture(scope="module")
def network(request):
    yield Scaled(request.param, ZOO[request.param](**SCALED[request.param]))
    gc.collect()


def test_every_network_is_tested():
    assert sorted([*SCALED, *SCALINGS]) == sorted(ZOO)
    assert set(SCALINGS.values()) <= set(SCALED)


@pytest.mark.parametrize("network", marked(NAMES[: -len(FP32_ELSEWHERE)]), indirect=True)
def test_fp32_matches_onnxruntime(network: Scaled, run_all):
    import tvm_int8

    reference = run_all(peers.ort_fp32(network.model, [], 1).infer, network.inputs)
    module = tvm_int8.compile(network.model, quantization=None)
    assert metrics.relative_error(reference, run_all(module, network.inputs)) <= FP32_TOLERANCE
    assert unscheduled(module) == []


@pytest.mark.parametrize("network", marked(NAMES), indirect=True)
def test_int8_is_as_exact_as_onnxruntime(network: Scaled, run_all):
    """Same calibration inputs for both; nothing that multiplies stays in FP32.

    Quantisers are compared: what tiles may lose on top is an option (test_winograd).
    """
    import tvm_int8

    model, inputs = network.model, network.inputs
    reference = run_all(peers.ort_fp32(model, [], 1).infer, inputs)
    theirs = metrics.sqnr_db(reference, run_all(peers.ort_int8(model, network.calibration, 1).infer, inputs))
    module = tvm_int8.compile(model, calibration=network.calibration, quantization={"winograd": "off"})
    ours = metrics.sqnr_db(reference, run_all(module, inputs))
    assert ours >= theirs, f"{network.name}: SQNR {ours:.2f} dB, ONNX Runtime {theirs:.2f} dB"
    assert left_in_fp32(module) == []
    assert unscheduled(module) == []


def left_in_fp32(module) -> list[str]:
    """Names of the convolution and dense layers the report does not call INT8."""
    rows = [row for row in module.report if any(word in row.op for word in MAC_OPERATORS)]
    assert rows, "the report lists no convolution or dense layer"
    return [row.layer for row in rows if row.precision.lower() != "int8"]


def unscheduled(module) -> list[str]:
    """Kernels that run as TVM made them."""
    return [row.layer for row in module.report if "unscheduled" in row.origin]


# The builder


@pytest.mark.parametrize("name", COUNTS)
def test_topology_is_the_papers(name):
    convolutions, millions = COUNTS[name]
    graph = ZOO[name](image=96).graph
    assert sum(node.op_type == "Conv" for node in graph.node) == convolutions
    assert sum(np.prod(tensor.dims) for tensor in graph.initializer) / 1e6 == pytest.approx(millions, rel=0.005)


@pytest.mark.parametrize("name", ["resnet18_v1", "mobilenet_v2", "efficientnet_b0", "yolov3_tiny", "fsrcnn"])
def test_outputs_are_healthy_and_depend_on_the_input(name):
    model = ZOO[name](**SCALED[name])
    infer = peers.ort_fp32(model, [], 1).infer
    for values in zip(*[infer(x) for x in inputs_of(model, 6, 1)], strict=True):
        stacked = np.stack(values)
        assert 0.1 < stacked.std() < 10
        assert stacked.std(axis=0).mean() > 0.1 * stacked.std()


def test_weights_are_the_same_on_every_call():
    first, second = (ZOO["mobilenet_v1"](image=32, width=0.25).SerializeToString() for _ in range(2))
    assert first == second


def test_groups_stand_for_their_networks():
    assert networks.expand(["unet", "zoo", "light"])[:2] == ["unet", "resnet18_v1"]
    assert len(networks.expand(["zoo", "all"])) == len(networks.GROUPS["all"]) == len(set(networks.GROUPS["all"]))
    assert networks.load_network("espcn").inputs(2, 0)[1].shape == (1, 1, 224, 224)


def assert_sweep_follows(net: GraphBuilder, *outputs):
    """What the builder computed beside the graph is what ONNX Runtime computes with it."""
    actual = peers.ort_fp32(net.finish(*outputs), [], 1).infer(net.input.value)
    assert metrics.relative_error([output.value for output in outputs], actual) < 1e-4


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "window"),
    [
        (8, 3, 1, {}),
        (8, 7, 2, {}),
        (4, 3, 2, {"groups": 4}),
        (8, 3, 1, {"groups": 2}),
        (8, (1, 7), 1, {}),
        (8, 3, 1, {"dilation": 3}),
        (8, 3, 2, {"pad": 0}),
    ],
)
def test_convolution_of_the_sweep(channels, kernel, stride, window):
    net = GraphBuilder("conv", (4, 4, 34, 34), true_size=True)
    net.input = numpy_batch(net)
    y = net.conv_bn(net.input, "layer", channels, kernel, stride, **window)
    assert_sweep_follows(net, y, net.conv(net.input, "biased", channels, kernel, stride, **window))


def test_operators_of_the_sweep():
    net = GraphBuilder("operators", (4, 4, 26, 26), true_size=True)
    net.input = x = numpy_batch(net)
    pools = [
        net.max_pool(x, "max", 3, 2),
        net.max_pool(x, "max_ceil", 2, 3, pad=0, ceil=True),
        net.max_pool(x, "max_same", 2, 1, pad=(0, 0, 1, 1)),
        net.average_pool(x, "average", 3, 1, 1, count_pads=False),
        net.average_pool(x, "average_counted", 3, 2, 1),
    ]
    activations = [act(x, act.__name__) for act in (net.silu, net.hard_swish, net.leaky_relu, net.prelu, net.l2_norm)]
    movers = [
        net.resize(x, "nearest", (52, 52), "nearest"),
        net.resize(x, "linear", (31, 17), "linear"),
        net.resize(net.global_pool(x, "pool"), "broadcast", (5, 5), "linear"),
        net.depth_to_space(x, "depth_to_space", 2),
        net.channel_shuffle(x, "shuffle", 2),
        net.concat(net.halves(x, "halves")[::-1], "concat"),
        net.conv_transpose(x, "transposed", 3, 9, 3, pad=4, output_pad=2),
    ]
    assert_sweep_follows(net, *pools, *activations, *movers)


def numpy_batch(net: GraphBuilder):
    """Cut the sweep to the graph's batch, so that ONNX Runtime accepts it."""
    return type(net.input)(net.input.name, net.input.value[: net.input_shape[0]])


def test_numpy_resize_keeps_a_constant():
    x = np.full((1, 1, 4, 4), 3.0, np.float32)
    assert np.allclose(numpy_layers.resize2d(x, (9, 7), "linear"), 3.0)
