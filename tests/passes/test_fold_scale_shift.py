"""FoldScaleShift: chains of per-channel arithmetic go into the weights around them, or become one multiply and add."""

import numpy as np
import pytest
import tvm
from tvm.relax import op

from tests.passes.pass_testing import assert_same_numbers, call_named, const, f32, module, names, ops, transformed
from tvm_int8.passes.dataflow import const_value, constant, dtype_of, shape_of
from tvm_int8.passes.fold_scale_shift import FoldScaleShift


def scalar(value):
    return constant(np.float32(value))


def ones_int8(*shape):
    return constant(np.ones(shape, "int8"))


def dequantized_weight():
    return op.dequantize(ones_int8(6, 4, 3, 3), const(6), constant(np.zeros(6, "int8")), 0)


def conv(x, ic=4, oc=6, **kwargs):
    return op.nn.conv2d(x, const(oc, ic, 3, 3), **{"padding": 1, **kwargs})


def row(seed, channels=6):
    return const(1, channels, 1, 1, seed=seed, low=0.5, high=2)


def chain(*links):
    """A module body: a convolution, these links on its result, and a relu."""

    def body(emit, x):
        y = emit(conv(x), "conv")
        for index, link in enumerate(links):
            y = emit(link(y), f"link{index}")
        return op.nn.relu(y)

    return body


CHAINS = {
    "caffe batch norm and scale": [lambda y: op.multiply(y, row(1)), lambda y: op.add(y, row(2))],
    "bias first": [lambda y: op.add(y, row(1)), lambda y: op.multiply(y, row(2)), lambda y: op.add(y, row(3))],
    "column shapes": [lambda y: op.multiply(const(6, 1, 1), y), lambda y: op.add(const(6, 1, 1, seed=2), y)],
    "subtract and divide": [lambda y: op.subtract(y, row(1)), lambda y: op.divide(y, row(2))],
    "subtracted from": [lambda y: op.subtract(row(1), y), lambda y: op.multiply(y, scalar(0.5))],
    "scalars": [lambda y: op.add(y, scalar(3)), lambda y: op.multiply(y, scalar(1 / 6))],
    "negated": [lambda y: op.negative(y), lambda y: op.add(y, row(1))],
    "long": [lambda y, i=i: op.add(op.multiply(y, row(i)), row(i + 20)) for i in range(4)],
    "lone shift of odd shape": [lambda y: op.add(y, const(6, 1, 1))],
}


@pytest.mark.parametrize("kind", CHAINS)
def test_chain_after_a_convolution_becomes_its_bias(kind):
    before = module(chain(*CHAINS[kind]), x=(1, 4, 6, 6))
    after = transformed(FoldScaleShift(), before)
    assert ops(after) == ["nn.conv2d", "add", "nn.relu"]
    assert names(after) == ["conv", f"link{len(CHAINS[kind]) - 1}", "out"]
    bias = call_named(after, "add").args[1]
    assert (shape_of(bias), dtype_of(bias)) == ((1, 6, 1, 1), "float32")
    assert_same_numbers(before, after)


def test_scale_alone_leaves_no_bias():
    before = module(chain(lambda y: op.multiply(y, row(1)), lambda y: op.divide(y, scalar(3))), x=(1, 4, 6, 6))
    after = transformed(FoldScaleShift(), before)
    assert ops(after) == ["nn.conv2d", "nn.relu"]
    assert_same_numbers(before, after)


def test_zero_bias_goes():
    zero = constant(np.zeros((1, 6, 1, 1), "float32"))
    before = module(chain(lambda y: op.add(y, zero)), x=(1, 4, 6, 6))
    assert ops(transformed(FoldScaleShift(), before)) == ["nn.conv2d", "nn.relu"]


def test_float32_weights_are_rounded_once():
    factors = [f32(1, 6, 1, 1, seed=i, low=0.5, high=2) for i in range(5)]
    before = module(chain(*[lambda y, f=f: op.multiply(y, constant(f)) for f in factors]), x=(1, 4, 6, 6))
    weight = const_value(call_named(FoldScaleShift()(before), "nn.conv2d").args[1])
    exact = f32(6, 4, 3, 3) * np.prod([f.astype("float64") for f in factors], 0).reshape(6, 1, 1, 1)
    np.testing.assert_array_equal(weight, exact.astype("float32"))


@pytest.mark.parametrize(("rows", "bias"), [((3, 4), (6,)), ((3, 4), (1, 6)), ((2, 3, 4), (6,))])
def test_dense(rows, bias):
    def body(emit, x):
        y = emit(op.add(emit(op.matmul(x, const(4, 6)), "dense"), const(*bias)), "biased")
        return op.multiply(y, const(6, seed=4))

    before = module(body, x=rows)
    after = transformed(FoldScaleShift(), before)
    assert ops(after) == ["matmul", "add"]
    assert shape_of(call_named(after, "add").args[1]) == (6,)
    assert_same_numbers(before, after)


@pytest.mark.parametrize("bias", [(6,), (1, 6)])
def test_canonical_dense_bias_stays_as_written(bias):
    before = module(lambda emit, x: op.add(emit(op.matmul(x, const(4, 6))), const(*bias)), x=(3, 4))
    tvm.ir.assert_structural_equal(transformed(FoldScaleShift(), before), before)


def test_chain_stops_where_somebody_else_reads():
    def body(emit, x):
        biased = emit(op.add(emit(conv(x), "conv"), row(1)), "biased")
        return [op.multiply(biased, row(2)), op.nn.relu(biased)]

    before = module(body, x=(1, 4, 6, 6))
    after = transformed(FoldScaleShift(), before)
    tvm.ir.assert_structural_equal(after, before)


def test_merges_where_no_weights_are_near():
    def body(emit, x):
        y = emit(op.divide(emit(op.concat([x, x], 1)), const(8, 1, 1, low=1, high=2)))
        y = emit(op.subtract(emit(op.multiply(emit(op.add(y, scalar(1))), row(1, 8))), row(2, 8)), "end")
        return op.nn.relu(y)

    before = module(body, x=(1, 4, 6, 6))
    after = transformed(FoldScaleShift(), before)
    assert ops(after) == ["concat", "multiply", "add", "nn.relu"]
    assert names(after)[2] == "end"
    assert [shape_of(call_named(after, name).args[1]) for name in ("multiply", "add")] == [(1, 8, 1, 1)] * 2
    assert_same_numbers(before, after)


def test_scalars_merge_into_scalars():
    def body(emit, x):
        y = emit(op.clip(emit(op.add(x, scalar(3))), 0, 6))
        return op.nn.relu(emit(op.multiply(emit(op.add(emit(op.divide(y, scalar(6))), scalar(1))), scalar(2))))

    before = module(body, x=(1, 4, 6, 6))
    after = transformed(FoldScaleShift(), before)
    assert ops(after) == ["add", "clip", "multiply", "add", "nn.relu"]
    assert shape_of(call_named(after, "multiply").args[1]) == ()
    assert_same_numbers(before, after)


def test_chain_that_cancels_out_goes():
    def body(emit, x):
        return op.exp(emit(op.subtract(emit(op.add(emit(op.nn.relu(x)), scalar(1))), scalar(1))))

    before = module(body, x=(1, 4, 6, 6))
    assert ops(transformed(FoldScaleShift(), before)) == ["nn.relu", "exp"]


NEXT = {
    "unpadded": (lambda x: op.nn.conv2d(x, const(6, 4, 3, 3)), (1, 4, 6, 6), 4),
    "grouped": (lambda x: op.nn.conv2d(x, const(6, 2, 1, 1), groups=2), (1, 4, 6, 6), 4),
    "depthwise": (lambda x: op.nn.conv2d(x, const(4, 1, 3, 3), groups=4), (1, 4, 6, 6), 4),
    "dense": (lambda x: op.matmul(x, const(4, 6)), (3, 4), 4),
}


@pytest.mark.parametrize("layer", NEXT)
def test_folds_forward_into_a_layer_without_padding(layer):
    make, shape, channels = NEXT[layer]
    vector = (1, channels, 1, 1)[: len(shape)]

    def body(emit, x):
        y = emit(op.add(emit(op.multiply(x, const(*vector))), const(*vector, seed=2)))
        return op.nn.relu(emit(make(y), "layer"))

    before = module(body, layer_names={"layer": "model/layer"}, x=shape)
    after = transformed(FoldScaleShift(), before)
    kind = ops(before)[2]
    assert ops(after) == [kind, "add", "nn.relu"]
    inner = f"layer_{kind.removeprefix('nn.')}"
    assert names(after) == [inner, "layer", "out"]
    assert after["main"].attrs["layer_names"][inner] == "model/layer"
    assert_same_numbers(before, after)


def test_forward_and_backward_meet_in_one_layer():
    def body(emit, x):
        y = emit(op.multiply(emit(op.subtract(x, row(1, 4))), row(2, 4)))
        return op.multiply(emit(op.add(emit(conv(y, padding=0)), row(3))), row(4))

    before = module(body, x=(1, 4, 6, 6))
    after = transformed(FoldScaleShift(), before)
    assert ops(after) == ["nn.conv2d", "add"]
    assert_same_numbers(before, after)


def test_scale_without_shift_passes_padding():
    def body(emit, x):
        y = emit(conv(emit(op.multiply(x, scalar(1 / 255))), strides=2))
        return op.nn.conv2d_transpose(emit(op.multiply(emit(op.nn.relu(y)), row(1))), const(6, 2, 3, 3), padding=1)

    before = module(body, x=(1, 4, 6, 6))
    after = transformed(FoldScaleShift(), before)
    assert ops(after) == ["nn.conv2d", "nn.relu", "nn.conv2d_transpose"]
    assert_same_numbers(before, after)


def before_convolution(link, make=conv, **kwargs):
    return lambda emit, x: make(emit(op.add(emit(link(emit(op.nn.relu(x)))), row(2, 4))), **kwargs)


KEPT = {
    "shift into padding": before_convolution(lambda y: op.multiply(y, row(1, 4))),
    "shift into transposed": before_convolution(
        lambda y: op.multiply(y, row(1, 4)), lambda y: op.nn.conv2d_transpose(y, const(4, 6, 3, 3))
    ),
    "varies along width": lambda emit, x: op.multiply(emit(conv(x)), const(1, 1, 1, 6)),
    "a constant per sample": lambda emit, x: op.add(emit(conv(x)), const(2, 1, 1, 1)),
    "two tensors": lambda emit, x: op.multiply(emit(conv(x, oc=4)), x),
    "between non-linearities": lambda emit, x: op.nn.relu(emit(op.multiply(emit(op.nn.relu(emit(conv(x)))), row(1)))),
    "divided by it": lambda emit, x: op.divide(row(1), emit(conv(x))),
    "lone complement": lambda emit, x: op.subtract(scalar(1), emit(op.sigmoid(x))),
    "lone scalar": lambda emit, x: op.add(emit(op.exp(x)), scalar(3)),
    "already a bias": lambda emit, x: op.add(emit(conv(x)), row(1)),
    "quantised weight": lambda emit, x: op.add(emit(op.nn.conv2d(x, emit(dequantized_weight()))), row(1)),
}


@pytest.mark.parametrize("kind", KEPT)
def test_stays(kind):
    before = module(KEPT[kind], x=(2, 4, 6, 6))
    tvm.ir.assert_structural_equal(transformed(FoldScaleShift(), before), before)


def test_integers_are_not_touched():
    def body(emit, x):
        return op.add(emit(op.multiply(x, constant(np.array(2, "int32")))), constant(np.array(3, "int32")))

    before = module(body, dtype="int32", x=(1, 4, 2, 2))
    tvm.ir.assert_structural_equal(transformed(FoldScaleShift(), before), before)


def test_overflowing_weights_are_not_folded():
    huge = constant(np.full((1, 6, 1, 1), 3e38, "float32"))
    before = module(lambda emit, x: op.multiply(emit(conv(x)), huge), x=(1, 4, 6, 6))  # weights within +-1
    scaled = module(lambda emit, x: op.multiply(emit(op.multiply(emit(conv(x)), huge)), huge), x=(1, 4, 6, 6))
    assert ops(transformed(FoldScaleShift(), before)) == ["nn.conv2d"]
    assert ops(transformed(FoldScaleShift(), scaled)) == ["nn.conv2d", "multiply", "multiply"]


def test_quantised_layer_still_gets_a_canonical_bias():
    def body(emit, x):
        y = emit(op.nn.conv2d(x, emit(dequantized_weight())))
        return op.add(emit(op.add(y, const(6, 1, 1))), scalar(1))

    before = module(body, x=(1, 4, 6, 6))
    after = transformed(FoldScaleShift(), before)
    assert ops(after) == ["dequantize", "nn.conv2d", "add"]
    assert_same_numbers(before, after)
