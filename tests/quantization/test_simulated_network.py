"""SimulatedNetwork: as noisy as the integers, tensor by tensor and weight by weight, and exact where nothing rounds."""

import functools
import math
from dataclasses import replace

import numpy as np
import pytest
from tvm import relax

from tests.passes.pass_testing import const, f32, module
from tests.quantization.calibrated import Calibrated, calibrated, flat, outputs, with_table
from tests.small_networks import NETWORKS, draw
from tvm_int8 import pipeline
from tvm_int8.frontend import load_model
from tvm_int8.passes.dataflow import Dataflow, rebuild
from tvm_int8.passes.linear_layers import with_weight
from tvm_int8.passes.quantizers import Quantizers
from tvm_int8.quantization.output_noise import OutputNoise, decibels
from tvm_int8.quantization.simulated_network import SimulatedNetwork, effective_weight
from tvm_int8.quantization.sqnr import sqnr_db
from tvm_int8.schedules.registry import deliver

op = relax.op


def body(emit, x):
    """Depthwise, pointwise, strided and transposed convolutions, a residual, a constant picture, two outputs."""
    y = emit(op.nn.relu(emit(op.nn.conv2d(x, const(8, 3, 3, 3), padding=1))), "relu1")
    z = emit(op.nn.relu(emit(op.nn.conv2d(y, const(8, 1, 3, 3, seed=2), padding=1, groups=8), "depthwise")), "relu2")
    z = emit(op.nn.conv2d(z, const(8, 8, 1, 1, seed=3)), "pointwise")
    z = emit(op.nn.relu(emit(op.add(emit(op.add(z, y)), const(1, 8, 8, 8, seed=4)))), "relu3")
    up = emit(op.nn.conv2d_transpose(z, const(8, 5, 2, 2, seed=5), strides=2), "up")
    down = emit(op.nn.conv2d(z, const(6, 4, 3, 3, seed=6), strides=2, groups=2), "down")
    return [op.nn.relu(up), op.nn.max_pool2d(down, (2, 2))]


def images(count, seed):
    """Smooth, their channels of different ranges."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((count, 1, 3, 8, 8)) * np.array([1, 0.3, 3]).reshape(1, 1, 3, 1, 1)
    values = values + np.roll(values, 1, 3) + np.roll(values, 1, 4)
    return [{"x": value.astype(np.float32)} for value in values]


def small():
    mod = module(body, x=(1, 3, 8, 8))
    mod["main"] = mod["main"].with_attr("output_names", ["up", "down"])
    return mod, images


def of_bytes():
    """A network on images of bytes, normalised."""

    def network(emit, x):
        y = emit(op.nn.relu(emit(op.nn.conv2d(x, const(8, 3, 3, 3), padding=1))), "relu1")
        return op.nn.conv2d(y, const(5, 8, 3, 3, seed=2))

    def draw_bytes(count, seed):
        rng = np.random.default_rng(seed)
        values = rng.standard_normal((count, 1, 3, 9, 9))
        values = 128 + 40 * (values + np.roll(values, 1, 3))
        return [{"x": np.clip(value, 0, 255).astype(np.uint8)} for value in values]

    mod = module(network, x=(1, 3, 9, 9))
    return pipeline.byte_inputs((123.7, 116.3, 103.5), (58.4, 57.1, 57.4))(mod), draw_bytes


def of_model(name):
    model = NETWORKS[name]()
    return load_model(model), lambda count, seed: draw(model, count, seed)


MADE = {
    "small": small,
    "bytes": of_bytes,
    "dense": lambda: of_model("dense"),
}


class Simulated:
    """A calibrated network, simulated, and inputs it was not calibrated on."""

    def __init__(self, name):
        imported, drawn = MADE[name]()
        self.network: Calibrated = calibrated(imported, drawn(16, 0))
        self.batches = drawn(4, 1)
        self.inner = [*self.network.quantizers.activations]
        self.simulated = SimulatedNetwork(self.network.mod, self.network.quantizers, self.inner)

    def outputs(self):
        found = [self.simulated(batch) for batch in self.batches]
        return flat(values[name] for values in found for name in self.simulated.outputs)


@functools.cache
def made(name) -> Simulated:
    return Simulated(name)


def fresh(name) -> Simulated:
    """Rounding everything."""
    found = made(name)
    found.simulated.apply(found.network.quantizers)
    return found


@pytest.fixture(params=MADE)
def case(request) -> Simulated:
    return fresh(request.param)


@pytest.fixture
def plain() -> Simulated:
    return fresh("small")


# Against the integers


def test_it_is_as_noisy_as_the_integers(case):
    exact, integers = case.network.float_outputs(case.batches), case.network.integer_outputs(case.batches)
    found = case.outputs()
    wanted_db = sqnr_db(exact, integers)
    assert wanted_db > 25
    assert abs(sqnr_db(exact, found) - wanted_db) < 1.5
    assert sqnr_db(integers, found) > wanted_db + 5


def test_what_the_cases_cover(plain):
    """Factors of channels, scales of channels without them, depthwise and transposed convolutions."""
    activations = plain.network.quantizers.activations
    assert any(q.factor is not None for q in activations.values())
    assert any(q.per_channel and q.factor is None for q in activations.values())
    assert set(plain.network.quantizers.weights) >= {"depthwise", "pointwise", "up", "down"}
    assert all(q.correction is not None for q in plain.network.quantizers.weights.values())


def test_images_of_bytes_are_not_rounded_again():
    case = fresh("bytes")
    assert case.network.quantizers.pixels
    assert list(case.network.quantizers.activations) == ["relu1"]
    case.simulated.apply(None)
    exact = [case.simulated(batch) for batch in case.batches]
    case.simulated.apply(Quantizers(case.network.quantizers.activations))
    for batch, values in zip(case.batches, exact, strict=True):
        np.testing.assert_array_equal(case.simulated(batch)["relu1"], values["relu1"])


def test_other_quantisers_of_the_whole_network(plain):
    """Fewer bits, tensors with one scale, no correction: as if it had been made with them."""
    options = {"weight_bits": 7, "per_channel_activations": False, "bias_correction": "none", "rounding": "nearest"}
    other = with_table(plain.network.mod, plain.network.table, replace(plain.network.config, **options))
    plain.simulated.apply(other.quantizers)
    found, integers = plain.outputs(), other.integer_outputs(plain.batches)
    assert sqnr_db(integers, found) > other.integer_db(plain.batches) + 8
    anew = SimulatedNetwork(plain.network.mod, other.quantizers)
    expected = [anew(batch) for batch in plain.batches]
    np.testing.assert_array_equal(flat(values[name] for values in expected for name in anew.outputs), found)


# Rounding nothing, and one thing at a time


def test_rounding_nothing_is_the_float_network(case):
    case.simulated.apply(None)
    found, exact = case.outputs(), case.network.float_outputs(case.batches)
    np.testing.assert_allclose(found, exact, rtol=0, atol=2e-6 * np.abs(exact).max())


def test_back_and_forth_gives_the_same_bits(case):
    before = case.outputs()
    case.simulated.apply(None)
    exact = case.outputs()
    case.simulated.apply(case.network.quantizers)
    np.testing.assert_array_equal(case.outputs(), before)
    case.simulated.apply(Quantizers())
    np.testing.assert_array_equal(case.outputs(), exact)
    assert not np.array_equal(before, exact)


def test_tensors_are_seen_in_front_of_rounding(plain):
    plain.simulated.apply(None)
    exact = [plain.simulated(batch) for batch in plain.batches]
    name = "relu2"
    plain.simulated.set_activation(name, plain.network.quantizers.activations[name])
    for batch, before in zip(plain.batches, exact, strict=True):
        found = plain.simulated(batch)
        for seen in ("x", "relu1", name):
            np.testing.assert_array_equal(found[seen], before[seen])
        assert np.abs(found["relu3"] - before["relu3"]).max() > 0
        np.testing.assert_array_equal(found["x"], batch["x"])


def test_a_rounded_input_is_the_float_network_on_rounded_data(plain):
    plain.simulated.apply(None)
    quantizer = plain.network.quantizers.activations["x"]
    plain.simulated.set_activation("x", quantizer)
    found = plain.outputs()
    expected = plain.network.float_outputs([{"x": quantizer.rounded(batch["x"])} for batch in plain.batches])
    assert sqnr_db(expected, found) > 100


@pytest.mark.parametrize("name", ["depthwise", "pointwise", "up", "down"])
def test_arranged_weights_are_those_of_a_kernel_built_with_them(plain, name):
    quantizer = replace(plain.network.quantizers.weights[name], correction=None)
    arranged = plain.simulated._pack_anew(name, quantizer)
    weight = effective_weight(plain.simulated._calls[name], quantizer, plain.simulated._current)
    spec, constants = plain.simulated._orders[name]
    built = deliver(spec, replace(constants, weight=weight), plain.simulated._cpu).constants
    for found, expected in zip(arranged, built, strict=True):
        np.testing.assert_array_equal(found.numpy(), expected)
    assert not np.array_equal(arranged[0].numpy(), plain.simulated._kernels[name].constants[0])


@pytest.mark.parametrize("name", ["depthwise", "pointwise", "up", "down"])
def test_one_rounded_weight_is_the_float_network_with_that_weight(plain, name):
    """Divided by the factors that are in it, and with its correction behind."""
    plain.simulated.apply(None)
    quantizer = plain.network.quantizers.weights[name]
    plain.simulated.set_weight(name, quantizer)
    divisor = plain.network.quantizers.divisor(plain.network.choice.flow.value(_var(plain, name)))

    def rewrite(binding, value, new):
        if binding.var.name != name:
            return None
        real = quantizer.real
        if divisor is not None:
            real = real / (divisor.reshape(-1, 1, 1, 1) if name == "up" else _by_group(divisor, real))
        return op.add(with_weight(value, real), relax.const(quantizer.correction))

    expected = outputs(rebuild(plain.network.mod, rewrite), plain.batches)
    assert sqnr_db(expected, plain.outputs()) > 100
    assert sqnr_db(plain.network.float_outputs(plain.batches), expected) < 70


def _var(case, name):
    return next(var for var in case.network.choice.flow.producer if var.name == name)


def _by_group(divisor, weight):
    groups = len(divisor) // weight.shape[1]
    return np.repeat(divisor.reshape(groups, 1, -1), len(weight) // groups, 0).reshape(*weight.shape[:2], 1, 1)


def test_weights_follow_the_factors_of_their_data(plain):
    """Set after an activation, a weight stands for the same real one, whatever the factors are."""
    flow, choice = Dataflow(plain.network.mod), plain.network.choice
    name = next(n for n, q in plain.network.quantizers.activations.items() if q.factor is not None)
    var = next(v for v in flow.producer if v.name == name)
    plain.simulated.apply(None)
    exact = plain.outputs()
    for quantizer in (choice.channels(var), choice.tensor(var), choice.widest(var)):
        trial = Quantizers({**plain.network.quantizers.activations, name: quantizer})
        plain.simulated.set_activation(name, quantizer)
        for binding in flow.consumers[var]:
            if binding.var.name in plain.network.quantizers.weights:
                plain.simulated.set_weight(binding.var.name, choice.weight(binding, trial))
        assert sqnr_db(exact, plain.outputs()) > 35


# The noise of outputs


def test_noise_over_signal_is_averaged_over_outputs(plain):
    noise = OutputNoise(plain.simulated, plain.batches)
    assert noise.measure() == 0
    exact = [plain.simulated(batch) for batch in plain.batches]
    plain.simulated.apply(plain.network.quantizers)
    found = [plain.simulated(batch) for batch in plain.batches]
    shares = [
        10 ** (-sqnr_db(*(flat(values[name] for values in runs) for runs in (exact, found))) / 10)
        for name in plain.simulated.outputs
    ]
    assert noise.measure() == pytest.approx(np.mean(shares), rel=1e-5)


def test_an_output_that_is_always_zero():
    """No noise in it is none; any is infinite."""

    def dead(emit, x):
        y = emit(op.nn.relu(emit(op.nn.conv2d(x, const(4, 3, 1, 1)))), "relu1")
        y = emit(op.nn.conv2d(y, const(4, 4, 1, 1, seed=2)), "last")
        return op.nn.relu(emit(op.subtract(y, const(1, low=1e4, high=2e4))))

    batches = [{"x": f32(1, 3, 4, 4, seed=seed)} for seed in range(2)]
    network = calibrated(module(dead, x=(1, 3, 4, 4)), batches)
    noise = OutputNoise(SimulatedNetwork(network.mod, network.quantizers), batches)
    noise.network.apply(network.quantizers)
    assert noise.measure() == 0


@pytest.mark.parametrize(("noise", "expected"), [(0, math.inf), (1, 0), (0.001, 30), (math.inf, -math.inf)])
def test_decibels(noise, expected):
    assert decibels(noise) == pytest.approx(expected)
