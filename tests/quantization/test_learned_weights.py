"""Weights of a whole network rounded for its data: every layer errs less than to the nearest, and not on average."""

import functools
from dataclasses import replace

import numpy as np
import pytest
from tvm import relax

from tests.numpy_calibration import NumpyNetwork
from tests.passes.pass_testing import const, module
from tests.quantization.calibrated import Calibrated, calibrated, with_table
from tests.quantization.test_second_moments import patches
from tvm_int8 import pipeline
from tvm_int8.quantization import second_moments
from tvm_int8.quantization.learned_weights import learn_weights
from tvm_int8.quantization.weights import weight_limit

op = relax.op


def body(emit, x):
    """Every kind of convolution; all their pixels are looked at, so what is learnt from is known exactly."""
    y = emit(op.nn.relu(emit(op.nn.conv2d(x, const(8, 3, 3, 3), padding=1), "stem")), "relu1")
    z = emit(op.nn.relu(emit(op.nn.conv2d(y, const(8, 1, 3, 3, seed=2), padding=1, groups=8), "depthwise")), "relu2")
    z = emit(op.nn.relu(emit(op.nn.conv2d(z, const(24, 8, 1, 1, seed=3)), "pointwise")), "relu3")
    z = emit(op.nn.relu(emit(op.nn.conv2d(z, const(8, 12, 3, 3, seed=6), strides=2, groups=2), "grouped")), "relu4")
    z = emit(op.nn.relu(emit(op.nn.conv2d_transpose(z, const(8, 9, 2, 2, seed=5), strides=2), "up")), "relu5")
    z = emit(op.nn.adaptive_avg_pool2d(z, (1, 1)), "pool")
    return emit(op.matmul(emit(op.reshape(z, (1, 9))), const(9, 5, seed=7)), "dense")


def images(count, seed):
    """Smooth, their channels of different ranges."""
    values = np.random.default_rng(seed).standard_normal((count, 1, 3, 7, 7))
    values = (values + np.roll(values, 1, 3) + np.roll(values, 1, 4)) * np.array([1, 0.3, 3]).reshape(3, 1, 1)
    return values


def floats(count, seed):
    return [{"x": value.astype(np.float32)} for value in images(count, seed)]


def in_bytes(count, seed):
    return [{"x": np.clip(128 + 30 * value, 0, 255).astype(np.uint8)} for value in images(count, seed)]


KINDS = {
    "default": (floats, {}),
    "bytes": (in_bytes, {}),
    "seven bits": (floats, {"weight_bits": 7, "weight_clipping": "mse"}),
    "one scale": (floats, {"per_channel_weights": False, "per_channel_activations": False}),
}


class Learned:
    """A network whose weights were rounded to the nearest, and then learnt."""

    def __init__(self, kind):
        drawn, options = KINDS[kind]
        imported = module(body, x=(1, 3, 7, 7))
        if kind == "bytes":
            imported = pipeline.byte_inputs((123.7, 116.3, 103.5), (58.4, 57.1, 57.4))(imported)
        self.batches, self.new = drawn(16, 0), drawn(8, 100)
        self.network: Calibrated = calibrated(imported, self.batches, rounding="nearest", **options)
        flow = self.network.choice.flow
        self.calls = {b.var.name: b.value for b in flow.bindings if b.var.name in self.network.quantizers.weights}
        self.look = NumpyNetwork(self.network.mod, list(dict.fromkeys(c.args[0].name for c in self.calls.values())))
        self.limit = weight_limit(self.network.config.weight_bits)
        self.tensors, self.new_tensors = ([self.look(batch) for batch in every] for every in (self.batches, self.new))
        self.weights = self.learn().weights

    def learn(self, **options):
        options = {"progress": False, **options}
        seen = {id(batch): tensors for batch, tensors in zip(self.batches, self.tensors, strict=True)}
        network = self.network
        return learn_weights(network.mod, network.quantizers, lambda batch: seen[id(batch)], self.batches, **options)

    @functools.cache  # noqa: B019
    def read(self, name, new):
        """What a layer multiplies with its weights, [P, G, K], computed here once more."""
        call, quantizers = self.calls[name], self.network.quantizers
        data, found = call.args[0].name, []
        looked_at = zip(*((self.new, self.new_tensors) if new else (self.batches, self.tensors)), strict=True)
        for batch, tensors in looked_at:
            if data in quantizers.pixels:
                values = batch["x"] - quantizers.pixels[data].zero_point.reshape(1, -1, 1, 1).astype(np.float64)
            else:
                quantizer = quantizers.activations[data]
                values = quantizer.rounded(tensors[data]).astype(np.float64)
                if quantizer.factor is not None and name != "depthwise":
                    values = values / quantizer.factor.reshape(1, -1, 1, 1)
            found.append(patches(call, values))
        return np.concatenate(found)

    def error(self, name, weight, new=False):
        """What rounding adds to the layer's results, [P, G, O / G]; corrections included."""
        read = self.read(name, new)
        lost = (weight.real - weight.exact).reshape(read.shape[1], -1, read.shape[2])
        correction = 0 if weight.correction is None else weight.correction.reshape(1, *lost.shape[:2])
        return np.einsum("pgk,gok->pgo", read, lost) + correction


learned = functools.cache(Learned)


@pytest.fixture(params=KINDS)
def case(request):
    return learned(request.param)


def test_the_cases_cover_what_there_is():
    quantizers = learned("default").network.quantizers
    assert any(q.factor is not None for q in quantizers.activations.values())
    assert learned("bytes").network.quantizers.pixels
    assert list(quantizers.weights) == ["stem", "depthwise", "pointwise", "grouped", "up", "dense_conv"]


def gains(case, new=False):
    """Layer -> how much less power its error has than with weights rounded to the nearest."""
    before = case.network.quantizers.weights
    powers = {
        name: [np.square(case.error(name, weights[name], new)).mean() for weights in (before, case.weights)]
        for name in case.calls
        if name != "up"
    }
    return {name: nearest / learnt for name, (nearest, learnt) in powers.items()}


def test_every_layer_errs_less_than_to_the_nearest(case):
    found = list(gains(case).values())
    assert min(found) > 0.99
    assert max(found) > 2
    assert np.median(found) > 1.1


def test_so_it_does_on_new_inputs(case):
    found = list(gains(case, new=True).values())
    assert min(found) > 0.5
    assert np.median(found) > 1.05


def test_corrections_take_the_mean_error_out(case):
    for name in case.calls:
        if name == "up":
            continue
        error = case.error(name, case.weights[name])
        assert np.abs(error.mean(0)).max() < 2e-3 * error.std() + 1e-7, name
        plain = replace(case.weights[name], correction=None)
        assert np.abs(case.error(name, plain).mean(0)).max() > 0.01 * error.std()


def test_without_corrections():
    """The mean error counts then, like any other."""
    case = learned("default")
    found = case.learn(correct_bias=False).weights
    for name in case.calls:
        if name == "up":
            continue
        assert found[name].correction is None
        nearest, corrected = (
            replace(w[name], correction=None) for w in (case.network.quantizers.weights, case.weights)
        )
        power, *others = (np.square(case.error(name, w)).mean() for w in (found[name], nearest, corrected))
        assert all(power < 1.02 * other for other in others), name


def test_integers_keep_their_type_range_and_scale(case):
    for name, weight in case.weights.items():
        before = case.network.quantizers.weights[name]
        assert (weight.values.dtype, weight.values.shape) == (np.int8, before.values.shape)
        assert np.abs(weight.values.astype(int)).max() <= case.limit
        assert weight.scale is before.scale
        assert weight.exact is before.exact
        assert np.abs(weight.values.astype(int) - before.values).max() <= 8


def test_transposed_convolutions_stay_as_they_are(case):
    assert case.weights["up"] is case.network.quantizers.weights["up"]


def test_activations_stay_as_they_are(case):
    before = dict(case.network.quantizers.weights)
    found = case.learn()
    assert found.activations == case.network.quantizers.activations
    assert found.pixels == case.network.quantizers.pixels
    assert case.network.quantizers.weights == before


def test_layers_with_very_many_inputs_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(second_moments, "LARGEST", 20)
    found, before = learned("default").learn().weights, learned("default").network.quantizers.weights
    kept = [name for name in before if found[name] is before[name]]
    assert sorted(kept) == ["grouped", "stem", "up"]


def test_it_is_reproducible(case):
    again = case.learn().weights
    for name, weight in case.weights.items():
        np.testing.assert_array_equal(again[name].values, weight.values)


def test_other_rounding_of_the_same_weights_is_no_better():
    """Rounding that keeps sums is made for smooth inputs, without having seen any."""
    case = learned("default")
    sums = with_table(case.network.mod, case.network.table, replace(case.network.config, rounding="sums"))
    ratios = [
        np.square(case.error(name, weight)).mean() / np.square(case.error(name, case.weights[name])).mean()
        for name, weight in sums.quantizers.weights.items()
        if name != "up"
    ]
    assert np.median(ratios) > 1


def test_channels_of_seven_and_eight_bits_have_limits_of_their_own():
    batches = floats(16, 0)
    every = {"*": [7, 8]}
    network = calibrated(module(two_outputs, x=(1, 3, 7, 7)), batches, rounding="nearest", bits=every)
    (name,) = network.quantizers.weights
    before = network.quantizers.weights[name]
    assert before.channel_bits == (7, 8)
    look = NumpyNetwork(network.mod, ["x"])
    learnt = learn_weights(network.mod, network.quantizers, look, batches, progress=False).weights[name]
    reach = np.abs(learnt.values.astype(int)).reshape(2, -1).max(1)
    assert reach[0] <= 63 < reach[1] <= 127
    assert np.abs(learnt.real - learnt.exact).max() < 4 * learnt.scale.max()


def two_outputs(emit, x):
    return emit(op.nn.conv2d(x, const(2, 3, 3, 3), padding=1), "stem")
