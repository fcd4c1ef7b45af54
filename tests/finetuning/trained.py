"""A small classifier, its calibration and training inputs, and its quantised form."""

from __future__ import annotations

import functools

import numpy as np
import onnx

import tvm_int8
from tests.small_networks import Network
from tvm_int8 import QuantizationConfig
from tvm_int8.quantized_model import QuantizedModel

CLASSES = 5


def classifier() -> onnx.ModelProto:
    """A residual block, a depthwise convolution, a pool and a dense layer."""
    net = Network(3, x=(1, 3, 8, 8))
    stem = net.relu(net.norm(net.conv("x", 8)))
    block = net.relu(net.add("Add", net.conv(net.relu(net.conv(stem, 8)), 8), stem))
    deep = net.relu(net.conv(block, 8, groups=8))
    flat = net.add("Flatten", net.add("GlobalAveragePool", deep), channels=8)
    return net.finish(net.dense(flat, 8, CLASSES))


def inputs(count: int, seed: int = 0) -> np.ndarray:
    """Images [count, 3, 8, 8] whose channels' means differ, so that classes do."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((count, 3, 8, 8)) + 2 * rng.standard_normal((count, 3, 1, 1))).astype(np.float32)


@functools.cache
def quantized(weight_bits: int = 3, activation_bits: int = 8) -> QuantizedModel:
    bits = {"weights": {"*": weight_bits}, "activations": {"*": activation_bits}}
    return tvm_int8.quantize(classifier(), inputs(32), QuantizationConfig(bits=bits), progress=False)


def run_all(model, images: np.ndarray) -> np.ndarray:
    """The compiled module's output for each image, [count, classes]."""
    module = tvm_int8.compile(model, num_threads=1, progress=False)
    name = module.outputs[0].name
    return np.concatenate([module.run({"x": image[None]})[name] for image in images])
