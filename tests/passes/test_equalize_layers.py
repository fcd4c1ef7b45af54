"""EqualizeLayers: consecutive layers span similar ranges, the network computes what it did."""

import numpy as np
import pytest
from tvm import relax

from tests.passes.pass_testing import (
    assert_same_numbers,
    assert_unchanged,
    call_named,
    const,
    f32,
    module,
    names,
    ops,
    transformed,
)
from tests.small_networks import NETWORKS, draw
from tvm_int8 import pipeline
from tvm_int8.frontend import load_model
from tvm_int8.passes.convolution_weights import incoming_weights
from tvm_int8.passes.dataflow import Dataflow, const_value, constant, op_name
from tvm_int8.passes.equalize_layers import NEGLIGIBLE, EqualizeLayers
from tvm_int8.passes.equalized_tensors import equalized_tensors
from tvm_int8.passes.scale_regions import scale_regions
from tvm_int8.quantization.float_network import FloatNetwork
from tvm_int8.quantization.sqnr import sqnr_db

op = relax.op


def uneven(*shape, axis=0, seed=3):
    """A weight whose channels along one axis span two orders of magnitude."""
    spread = [-1 if i == axis else 1 for i in range(len(shape))]
    return constant(f32(*shape, seed=seed) * np.geomspace(0.1, 10, shape[axis]).astype("float32").reshape(spread))


def pair(between, emit, x):
    """Two convolutions, a bias and whatever `between` puts after it."""
    y = emit(op.nn.conv2d(x, uneven(6, 3, 3, 3), padding=1), "conv1")
    y = emit(op.add(y, const(1, 6, 1, 1, seed=5)), "bias1")
    return op.nn.conv2d(between(emit, y), uneven(4, 6, 1, 1, axis=1, seed=4), padding=1)


def ranges(mod):
    """Of every layer in turn: largest magnitude by output channel, and by input channel (of one group)."""
    weights = [np.abs(const_value(b.value.args[1])) for b in Dataflow(mod).bindings if "conv2d" in op_name(b.value)]
    return [(weight.max((1, 2, 3)), weight.max((0, 2, 3))) for weight in weights]


def relu(emit, y):
    return emit(op.nn.relu(y), "relu1")


def two_leaky(emit, y):
    return emit(op.nn.leakyrelu(emit(op.nn.leakyrelu(y, 0.1), "leaky1"), 0.2), "leaky2")


BETWEEN = {
    "nothing": lambda emit, y: y,
    "relu": relu,
    "leaky": two_leaky,
    "prelu": lambda emit, y: emit(op.nn.prelu(y, const(6, seed=6), axis=1)),
    "clip": lambda emit, y: emit(op.clip(y, -0.5, 0.75)),
    "bounds": lambda emit, y: emit(op.minimum(emit(op.maximum(y, const(1, 6, 1, 1))), constant(np.float32(0.5)))),
    "multiply": lambda emit, y: emit(op.multiply(y, const(1, 6, 1, 1))),
    "max_pool": lambda emit, y: emit(op.nn.max_pool2d(y, (3, 3), (2, 2), padding=1)),
    "avg_pool": lambda emit, y: emit(op.nn.avg_pool2d(relu(emit, y), (2, 2), padding=1, count_include_pad=True)),
    "global_pool": lambda emit, y: emit(op.nn.adaptive_avg_pool2d(relu(emit, y), (1, 1))),
    "resize": lambda emit, y: emit(op.image.resize2d(y, (9, 9), layout="NCHW", method="linear")),
    "pad": lambda emit, y: emit(op.nn.pad(y, [0, 0, 0, 0, 1, 0, 0, 2])),
    "views": lambda emit, y: emit(
        op.reshape(emit(op.add(emit(op.reshape(relu(emit, emit(op.nn.adaptive_avg_pool2d(y, 1))), (1, 6))), const(6))),
                   (1, 6, 1, 1))
    ),
}  # fmt: skip


@pytest.mark.parametrize("between", BETWEEN)
def test_ranges_meet_and_the_function_stays(between):
    before = module(lambda emit, x: pair(BETWEEN[between], emit, x), x=(1, 3, 6, 6))
    after = transformed(EqualizeLayers(), before)
    (front, _), (_, behind) = ranges(after)
    np.testing.assert_allclose(front, behind, rtol=2 * NEGLIGIBLE)
    assert_same_numbers(before, after)


def test_scales_are_those_of_the_paper():
    before = module(lambda emit, x: pair(relu, emit, x), x=(1, 3, 6, 6))
    (front, _), (_, behind) = ranges(before)
    scale = np.sqrt(front * behind) / behind
    first, second = (const_value(b.value.args[1]) for b in Dataflow(before).bindings if op_name(b.value) == "nn.conv2d")
    after = EqualizeLayers()(before)
    weights = [const_value(b.value.args[1]) for b in Dataflow(after).bindings if op_name(b.value) == "nn.conv2d"]
    np.testing.assert_allclose(weights[0], first / scale.reshape(-1, 1, 1, 1), rtol=1e-6)
    np.testing.assert_allclose(weights[1], second * scale.reshape(1, -1, 1, 1), rtol=1e-6)
    bias = const_value(call_named(after, "add").args[1])
    np.testing.assert_allclose(bias, f32(1, 6, 1, 1, seed=5) / scale.reshape(1, -1, 1, 1), rtol=1e-6)


def test_relu6_becomes_a_bound_per_channel():
    before = module(lambda emit, x: pair(lambda e, y: e(op.clip(y, 0, 6), "relu6"), emit, x), x=(1, 3, 6, 6))
    after = EqualizeLayers()(before)
    assert ops(after) == ["nn.conv2d", "add", "nn.relu", "minimum", "nn.conv2d"]
    assert const_value(call_named(after, "minimum").args[1]).shape == (1, 6, 1, 1)


def test_scaled_tensors_have_names_of_their_own():
    layer_names = {"conv1": "/stem/conv", "bias1": "/stem/conv", "relu1": "/stem/relu", "out": "/head"}
    before = module(lambda emit, x: pair(relu, emit, x), layer_names=layer_names, x=(1, 3, 6, 6))
    after = EqualizeLayers()(before)
    assert names(after) == ["conv1_equalized", "bias1_equalized", "relu1_equalized", "out"]
    assert after["main"].attrs["layer_names"]["relu1_equalized"] == "/stem/relu"
    found = equalized_tensors(after)
    assert [entry.name for entry in found.values()] == ["conv1", "bias1", "relu1"]
    (front, _), (new_front, _) = ranges(before)[0], ranges(after)[0]
    np.testing.assert_allclose(found["relu1_equalized"].scale, front / new_front, rtol=1e-5)
    assert not found["relu1_equalized"].shift.any()
    assert equalized_tensors(before) == {}


def chain(emit, x):
    """Convolution, depthwise, grouped and transposed convolution, dense layer."""
    y = emit(op.nn.relu(emit(op.nn.conv2d(x, uneven(8, 3, 1, 1)), "conv")))
    y = emit(op.nn.relu(emit(op.nn.conv2d(y, uneven(8, 1, 3, 3, seed=4), padding=1, groups=8), "depthwise")))
    y = emit(op.nn.leakyrelu(emit(op.nn.conv2d(y, uneven(12, 4, 1, 1, seed=5), groups=2), "grouped")))
    y = emit(op.nn.conv2d_transpose(y, uneven(12, 3, 2, 2, axis=0, seed=6), strides=2, groups=2), "transposed")
    y = emit(op.reshape(emit(op.nn.adaptive_avg_pool2d(emit(op.nn.relu(y)), 1)), (2, 6)))
    return op.matmul(y, uneven(6, 5, seed=7))


def test_layers_of_every_kind():
    before = pipeline.canonical_float()(module(chain, x=(2, 3, 5, 5)))
    after = transformed(EqualizeLayers(), before)
    assert len(scale_regions(Dataflow(before))) == 4
    assert_same_numbers(before, after)
    (front, _), (depthwise, _), _, _, _ = ranges(after)
    grouped = next(b.value for b in Dataflow(after).bindings if b.var.name.startswith("grouped"))
    np.testing.assert_allclose(front, depthwise, rtol=2 * NEGLIGIBLE)
    np.testing.assert_allclose(depthwise, np.abs(incoming_weights(grouped)).max((1, 2)), rtol=2 * NEGLIGIBLE)


def test_all_readers_count():
    def fork(emit, x):
        y = emit(op.nn.relu(emit(op.nn.conv2d(x, uneven(6, 3, 1, 1)))), "relu")
        left = emit(op.nn.conv2d(y, const(4, 6, 1, 1)), "left")
        pooled = emit(op.nn.max_pool2d(y, (3, 3), padding=1))
        return op.add(left, emit(op.nn.conv2d(pooled, uneven(4, 6, 1, 1, axis=1)), "right"))

    before = module(fork, x=(1, 3, 5, 5))
    after = transformed(EqualizeLayers(), before)
    (front, _), (_, left), (_, right) = ranges(after)
    np.testing.assert_allclose(front, np.maximum(left, right), rtol=2 * NEGLIGIBLE)
    assert_same_numbers(before, after)


def test_channels_that_carry_nothing_stay():
    """All zero in front or behind, or so small that they would round to zero: their biases must not grow."""
    front, behind = f32(6, 3, 3, 3), f32(4, 6, 1, 1, seed=4)
    front[0], behind[:, 1], front[2], behind[:, 2], front[3] = 0, 0, front[2] * 1e-9, behind[:, 2] * 1e-9, 9 * front[3]

    def small(emit, x):
        y = emit(op.add(emit(op.nn.conv2d(x, constant(front))), const(1, 6, 1, 1)), "bias")
        return op.nn.conv2d(emit(op.nn.relu(y)), constant(behind))

    before = module(small, x=(1, 3, 6, 6))
    after = transformed(EqualizeLayers(), before)
    bias, new_bias = (const_value(call_named(mod, "add").args[1]).ravel() for mod in (before, after))
    np.testing.assert_array_equal(bias[:3], new_bias[:3])
    assert (bias[3:] != new_bias[3:]).any()
    assert_same_numbers(before, after)


@pytest.mark.parametrize("dead", ["front", "behind"])
def test_a_channel_that_carries_nothing_does_not_stand_out(dead):
    """As folding leaves the kernel of a channel that was dead in training: huge, and multiplied by nothing."""
    front, behind = f32(6, 3, 3, 3), f32(4, 6, 1, 1, seed=4)
    front[2], behind[:, 2] = (1e-9, 50.0) if dead == "front" else (50.0, 1e-9)

    def body(emit, x):
        return op.nn.conv2d(relu(emit, emit(op.nn.conv2d(x, constant(front)), "conv1")), constant(behind))

    before = module(body, x=(1, 3, 6, 6))
    after = transformed(EqualizeLayers(), before)
    (new_front, _), (_, new_behind) = ranges(after)
    assert max(new_front.max(), new_behind.max()) < 1.1
    assert_same_numbers(before, after)


def residual(emit, y):
    return emit(op.add(y, emit(op.nn.relu(y))))


REFUSED = {
    "residual": residual,
    "concat": lambda emit, y: emit(op.strided_slice(emit(op.concat([y, y], axis=1)), [1], [0], [6])),
    "sigmoid": lambda emit, y: emit(op.sigmoid(y)),
    "hard_swish": lambda emit, y: emit(op.multiply(y, emit(op.clip(y, 0, 6)))),
    "square": lambda emit, y: emit(op.multiply(y, y)),
    "pixels": lambda emit, y: emit(op.add(y, const(1, 1, 6, 6))),
    "channel padding": lambda emit, y: emit(
        op.strided_slice(emit(op.nn.pad(y, [0, 0, 1, 0, 0, 0, 0, 0])), [1], [0], [6])
    ),
    "ones around": lambda emit, y: emit(op.nn.pad(y, [0, 0, 0, 0, 1, 1, 1, 1], pad_value=1.0)),
}


@pytest.mark.parametrize("between", REFUSED)
def test_what_scales_do_not_pass(between):
    before = module(lambda emit, x: pair(REFUSED[between], emit, x), x=(1, 3, 6, 6))
    assert_unchanged(before, EqualizeLayers()(before))


def test_an_output_stays_what_it_is():
    def body(emit, x):
        y = emit(op.nn.conv2d(x, uneven(6, 3, 3, 3)), "conv1")
        return [y, op.nn.conv2d(y, const(4, 6, 1, 1))]

    before = module(body, x=(1, 3, 6, 6))
    assert_unchanged(before, EqualizeLayers()(before))


@pytest.mark.parametrize("name", ["mobile", "dense"])
def test_compiled_networks_compute_the_same(name):
    """Through this project's kernels, bounds per channel included."""
    model = NETWORKS[name]()
    before = pipeline.canonical_float()(load_model(model))
    after = EqualizeLayers()(before)
    assert equalized_tensors(after)
    (batch,) = draw(model, 1, seed=2)
    outputs = [var.name for var in Dataflow(before).outputs]
    expected, actual = (FloatNetwork(mod, outputs)(batch) for mod in (before, after))
    for output in outputs:
        assert sqnr_db(expected[output], actual[output]) > 100
