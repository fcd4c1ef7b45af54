"""Networks drawn at random from concatenations and slices: in place or copied, they compute what NumPy says."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.frontend.running import run_onnx
from tests.small_networks import Network, draw
from tests.test_quantized_networks import compile_and_keep
from tvm_int8 import api
from tvm_int8.reference.network import run_network

SIZE = (6, 5)  # pixels: blocks of 480 bytes, which are no multiples of 64
CHANNELS = (16, 32, 48, 20)
STEPS = 14


def random_network(seed: int) -> onnx.ModelProto:
    """Convolutions, pools, additions, and above all concatenations (nested, repeated, shared) and slices."""
    rng = np.random.default_rng(seed)
    net = Network(seed, x=(1 + seed % 3 // 2, 3, *SIZE))
    tensors = [net.relu(net.conv("x", 32)), net.conv("x", 16)]

    def one() -> str:
        return tensors[max(0, len(tensors) - 1 - int(rng.integers(0, 6)))]

    def sliced(x: str) -> str:
        whole = rng.random() < 0.8 and net.channels[x] > 16
        begin = 16 * int(rng.integers(0, net.channels[x] // 16)) if whole else int(rng.integers(0, net.channels[x] - 4))
        end = min(net.channels[x], begin + 16 * int(rng.integers(1, 3)))
        bounds = [net.weight(np.array([value], np.int64)) for value in (begin, end, 1)]
        return net.add("Slice", x, *bounds, channels=end - begin)

    def step() -> str:
        kind = rng.choice(["conv", "concat", "slice", "pool", "add"], p=[0.3, 0.35, 0.2, 0.1, 0.05])
        if kind == "concat":
            parts = [one() for _ in range(rng.integers(2, 5))]
            return net.concat(*parts) if sum(net.channels[part] for part in parts) <= 320 else net.conv(one(), 16, 1)
        if kind == "slice":
            return sliced(one())
        if kind == "pool":
            return net.add("MaxPool", one(), kernel_shape=[3, 3], pads=[1] * 4)
        y = net.conv(one(), int(rng.choice(CHANNELS)), int(rng.choice([1, 3])))
        return net.add("Add", y, net.conv(one(), net.channels[y], 1)) if kind == "add" else net.relu(y)

    for _ in range(STEPS):
        tensors.append(step())
    last = net.concat(*tensors[-3:])
    return net.finish(net.conv(last, 8, 1), *([tensors[-2]] if seed % 4 == 0 else []))


@pytest.mark.parametrize("seed", range(9))
def test_int8_is_bit_exact(seed):
    model = random_network(seed)
    network = compile_and_keep(model, calibration=draw(model, 4, seed=0), progress=False)
    for inputs in draw(model, 2, seed=1):
        expected = run_network(network.ordered, *inputs.values())
        for found, wanted in zip(network.module(*inputs.values()), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("seed", range(4))
def test_fp32_matches_onnxruntime(seed):
    model = random_network(seed)
    module = api.compile(model, quantization=None)
    (inputs,) = draw(model, 1, seed=1)
    for expected, actual in zip(run_onnx(model, inputs), module(*inputs.values()), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
