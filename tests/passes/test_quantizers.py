"""Quantisers: what they stand for, and how they are chosen from ranges, weights and options."""

from dataclasses import replace

import numpy as np
import pytest
import tvm
from tvm import relax

from tests.passes.pass_testing import const, f32, module
from tvm_int8 import pipeline
from tvm_int8.config import QuantizationConfig
from tvm_int8.errors import CalibrationError
from tvm_int8.passes.dataflow import Dataflow, const_value
from tvm_int8.passes.insert_qdq import InsertQdq
from tvm_int8.passes.quantization_plan import plan_quantization
from tvm_int8.passes.quantizers import (
    ActivationQuantizer,
    QuantizerChoice,
    Quantizers,
    WeightQuantizer,
    choose_quantizers,
)
from tvm_int8.quantization.bias_correction import expected_error
from tvm_int8.quantization.calibration_table import CalibrationTable, TensorRange
from tvm_int8.quantization.observers import ChannelObserver, HistogramObserver
from tvm_int8.quantization.weights import quantize_weight

op = relax.op
CONVOLUTIONS = ["conv1", "conv2", "conv3", "conv4", "up"]


def network(emit, x):
    y = emit(op.nn.relu(emit(op.nn.conv2d(x, const(8, 3, 3, 3), padding=1), "conv1")), "relu1")
    y = emit(op.nn.relu(emit(op.nn.conv2d(y, const(8, 1, 3, 3, seed=2), padding=1, groups=8), "conv2")), "relu2")
    y = emit(op.nn.relu(emit(op.nn.conv2d(y, const(12, 8, 1, 1, seed=3)), "conv3")), "relu3")
    y = emit(op.nn.relu(emit(op.nn.conv2d(y, const(6, 4, 3, 3, seed=4), groups=3, padding=1), "conv4")), "relu4")
    y = emit(op.nn.max_pool2d(y, (2, 2), strides=(2, 2)), "pool")
    return emit(op.nn.conv2d_transpose(y, const(6, 4, 2, 2, seed=5), strides=2), "up")


def seen(channels, seed, relu=True):
    """What calibration would say of values whose channels have quite different ranges."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((4, channels, 8, 8)) * 10.0 ** rng.uniform(-1, 1, (1, channels, 1, 1))
    values = (np.maximum(values, 0) if relu else values).astype(np.float32)
    histogram, own = HistogramObserver("seen"), ChannelObserver()
    histogram.update(values, 0)
    own.update(values)
    low, high = 0.8 * float(values.min()), 0.8 * float(values.max())
    return TensorRange(low, high, "mse", 4, histogram.histogram(), own.statistics())


def table(**more):
    ranges = {"x": seen(3, 1, relu=False), "relu1": seen(8, 2), "relu2": seen(8, 3), "relu3": seen(12, 4)}
    return CalibrationTable({**ranges, "relu4": seen(6, 5), **more})


@pytest.fixture(scope="module")
def mod():
    return module(network, x=(1, 3, 8, 8))


def choice(mod, ranges=None, means=None, **options):
    flow, config = Dataflow(mod), QuantizationConfig(**options)
    return QuantizerChoice(flow, plan_quantization(flow, config), ranges or table(), config, means)


def chosen(mod, ranges=None, means=None, **options) -> Quantizers:
    return choice(mod, ranges, means, **options).run()


def call(mod, name):
    return next(b.value for b in Dataflow(mod).bindings if b.var.name == name)


# What they stand for


def test_rounded_activations():
    quantizer = ActivationQuantizer(np.float32(0.5).reshape(()), np.asarray(10, np.int64))
    values = np.float32([[-100, -5, -0.26, 0.24, 0.25, 0.75, 1, 100, 1000]])
    np.testing.assert_array_equal(quantizer.rounded(values), np.float32([[-5, -5, -0.5, 0, 0, 1, 1, 100, 122.5]]))
    assert quantizer.rounded(values).dtype == np.float32


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_rounded_channels(rank):
    scale, zero_point = f32(5, low=0.01, high=0.1), np.array([0, 3, 100, 128, 255])
    quantizer, values = ActivationQuantizer(scale, zero_point), f32(2, 5, *[3] * (rank - 2), low=-20, high=20)
    found = quantizer.rounded(values)
    for c in range(5):
        integers = np.clip(np.rint(values[:, c] / scale[c]) + zero_point[c], 0, 255)
        np.testing.assert_array_equal(found[:, c], (integers - np.float32(zero_point[c])).astype(np.float32) * scale[c])


@pytest.mark.parametrize("axis", [0, 1])
def test_the_weight_that_integers_are(axis):
    exact = f32(4, 6, 3, 3)
    values, scale = quantize_weight(exact, axis)
    spread = [-1 if i == axis else 1 for i in range(4)]
    real = WeightQuantizer(exact, values, scale, axis).real
    np.testing.assert_array_equal(real, values * scale.astype(np.float64).reshape(spread))
    assert (np.abs(real - exact) <= 0.5001 * scale.reshape(spread)).all()


def test_one_scale_for_a_weight():
    exact = f32(4, 6, 3, 3)
    values, scale = quantize_weight(exact, None)
    np.testing.assert_array_equal(WeightQuantizer(exact, values, scale, 0).real, values * np.float64(scale))


# Activations


def test_every_tensor_and_every_weight_has_one(mod):
    found = chosen(mod)
    assert sorted(found.activations) == ["pool", "relu1", "relu2", "relu3", "relu4", "x"]
    assert list(found.weights) == CONVOLUTIONS
    assert not found.pixels


def test_scales_of_channels_where_readers_allow(mod):
    found = chosen(mod).activations
    assert found["relu1"].per_channel and found["relu1"].factor is None  # read by a depthwise convolution
    for name in ("relu2", "relu3"):
        quantizer = found[name]
        np.testing.assert_allclose(quantizer.scale, quantizer.step * quantizer.factor, rtol=1e-6)
    assert not found["x"].per_channel


def test_one_scale_each_on_demand(mod):
    found = chosen(mod, per_channel_activations=False).activations
    assert not any(quantizer.per_channel for quantizer in found.values())
    scale, zero_point = table().scale_zero_point("relu3")
    assert (found["relu3"].scale, found["relu3"].zero_point) == (scale, zero_point)


def test_what_moves_keeps_its_scale(mod):
    found = chosen(mod).activations
    assert found["pool"].scale == found["relu4"].scale


def test_the_widest_range_covers_all_that_was_seen(mod):
    made = choice(mod)
    (relu3,) = [var for var in made.plan.quantized if var.name == "relu3"]
    _, high = table()["relu3"].histogram.ends
    assert float(made.widest(relu3).scale) * 255 == pytest.approx(high, rel=1e-5)
    assert made.widest(relu3).scale > made.tensor(relu3).scale
    bare = choice(mod, table(relu3=replace(table()["relu3"], histogram=None)))
    (relu3,) = [var for var in bare.plan.quantized if var.name == "relu3"]
    assert bare.widest(relu3).scale == bare.tensor(relu3).scale


def test_symmetric_activations(mod):
    found = chosen(mod, activation_symmetric=True).activations
    assert found["x"].zero_point == 128
    assert not found["relu4"].zero_point.any()


def test_a_missing_range_is_named(mod):
    ranges = table()
    without = CalibrationTable({name: ranges[name] for name in ranges if name != "relu4"})
    with pytest.raises(CalibrationError, match="relu4"):
        chosen(mod, without)


# Weights


def test_weights_hold_the_factors_of_what_they_read(mod):
    found = chosen(mod)
    for name, data in (("conv3", "relu2"), ("conv4", "relu3")):
        weight, factor = const_value(call(mod, name).args[1]), found.activations[data].factor
        np.testing.assert_array_equal(found.divisor(call(mod, name)), factor)
        groups = len(factor) // weight.shape[1]
        by_group = np.repeat(factor.reshape(groups, -1), len(weight) // groups, 0)[..., None, None]
        np.testing.assert_allclose(found.weights[name].exact, weight * by_group, rtol=1e-6)


@pytest.mark.parametrize("name", ["conv1", "conv2", "up"])
def test_other_weights_are_as_they_were(mod, name):
    found = chosen(mod)
    assert found.divisor(call(mod, name)) is None
    np.testing.assert_array_equal(found.weights[name].exact, const_value(call(mod, name).args[1]))


@pytest.mark.parametrize("bits", [7, 8])
@pytest.mark.parametrize("rounding", ["nearest", "sums"])
@pytest.mark.parametrize("clipping", ["none", "mse"])
def test_options_reach_the_weights(mod, bits, rounding, clipping):
    options = {"weight_bits": bits, "rounding": rounding, "weight_clipping": clipping}
    limit, found = 2 ** (bits - 1) - 1, chosen(mod, **options).weights
    for name in CONVOLUTIONS:
        values, axis = found[name].values.astype(int), found[name].axis
        others = tuple(i for i in range(4) if i != axis)
        assert np.abs(values).max() <= limit
        assert (np.abs(values).max(others) > 0.6 * limit).all()
        assert found[name].scale.shape == (values.shape[axis],)
    plain, axis = found["conv1"], 0
    if clipping == "none":
        values, scale = quantize_weight(plain.exact, axis, bits=bits, rounding=rounding)
        np.testing.assert_array_equal(plain.values, values)
        np.testing.assert_array_equal(plain.scale, scale)


def test_weights_to_be_learnt_start_from_sums(mod):
    sums, learned = (chosen(mod, rounding=rounding).weights for rounding in ("sums", "learned"))
    for name in CONVOLUTIONS:
        np.testing.assert_array_equal(learned[name].values, sums[name].values)


def test_clipping_weighs_errors_with_what_the_weights_meet(mod):
    """An outlier that meets silent data is clipped more readily than one that meets loud data."""

    def body(emit, x):
        weight = f32(2, 4, 3, 3, low=-0.1, high=0.1)
        weight[:, 1] *= 10
        return op.nn.conv2d(x, relax.const(weight))

    def scale_with(power):
        statistics = replace(seen(4, 1, relu=False).channels, mean_square=power)
        ranges = CalibrationTable({"x": TensorRange(-1.0, 1.0, "mse", 1, None, statistics)})
        found = chosen(module(body, x=(1, 4, 5, 5)), ranges, weight_clipping="mse", weight_bits=7)
        return next(iter(found.weights.values())).scale

    silent, loud = scale_with((1.0, 1e-6, 1.0, 1.0)), scale_with((1.0, 100.0, 1.0, 1.0))
    assert (silent < 0.6 * loud).all()


# Corrections


def test_corrections_take_out_what_rounding_adds_on_average(mod):
    found = chosen(mod)
    for name in CONVOLUTIONS:
        layer, weight = call(mod, name), found.weights[name]
        data, divisor = layer.args[0].name, found.divisor(layer)
        if data == "pool":  # whose channels calibration does not look at
            assert weight.correction is None
            continue
        mean = np.asarray(table()[data].channels.mean)
        mean = mean if divisor is None else mean / divisor
        np.testing.assert_array_equal(weight.correction, -expected_error(layer, weight.real - weight.exact, mean))


def test_no_corrections(mod):
    assert all(weight.correction is None for weight in chosen(mod, bias_correction="none").weights.values())


def test_means_that_are_known_otherwise(mod):
    """They come first; where there are none, what calibration observed does."""
    mean = f32(8, seed=9, low=0, high=3)
    found, plain = chosen(mod, means={"relu1": mean}), chosen(mod)
    weight = found.weights["conv2"]
    wanted = -expected_error(call(mod, "conv2"), weight.real - weight.exact, mean)
    np.testing.assert_array_equal(weight.correction, wanted)
    assert np.abs(wanted - plain.weights["conv2"].correction).max() > 0
    np.testing.assert_array_equal(found.weights["conv1"].correction, plain.weights["conv1"].correction)


# Images of bytes


def test_normalised_bytes_are_read_as_they_are():
    mean, std = np.array([123.7, 116.3, 103.5]), np.array([58.4, 57.1, 57.4])
    mod = pipeline.canonical_float()(pipeline.byte_inputs(mean, std)(module(network, x=(1, 3, 8, 8))))
    flow = Dataflow(mod)
    image = next(b.value.args[0].name for b in flow.bindings if b.var.name == "conv1")
    found = chosen(mod, table(**{image: seen(3, 1, relu=False)}))
    assert list(found.pixels) == [image]
    assert image not in found.activations
    np.testing.assert_allclose(found.divisor(call(mod, "conv1")), 1 / std, rtol=1e-5)
    np.testing.assert_array_equal(found.pixels[image].zero_point, np.rint(mean))
    weight = const_value(call(mod, "conv1").args[1])
    np.testing.assert_allclose(found.weights["conv1"].exact, weight / std.reshape(3, 1, 1), rtol=1e-5)


# Writing them down


def test_given_quantisers_are_what_is_inserted(mod):
    ranges, config = table(), QuantizationConfig()
    found = chosen(mod)
    given = InsertQdq(ranges, config, found)(mod)
    tvm.ir.assert_structural_equal(given, InsertQdq(ranges, config)(mod))
    flow = Dataflow(mod)
    again = choose_quantizers(flow, plan_quantization(flow, config), ranges, config)
    tvm.ir.assert_structural_equal(given, InsertQdq(ranges, config, again)(mod))
    other = Quantizers(found.activations, {**found.weights, "conv1": replace(found.weights["conv1"], correction=None)})
    assert len(Dataflow(InsertQdq(ranges, config, other)(mod)).bindings) == len(Dataflow(given).bindings) - 1
