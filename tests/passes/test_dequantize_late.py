"""DequantizeLate: selections from quantised data are quantised, too."""

import numpy as np
import pytest
from tvm import relax

from tests.passes.pass_testing import assert_unchanged, constant, f32, module, ops, run, transformed
from tests.passes.qdq_testing import int8_weight, main_orders, qdq, quantize, random_inputs
from tvm_int8 import pipeline
from tvm_int8.passes.dataflow import rebuild
from tvm_int8.passes.dequantize_late import DequantizeLate

op = relax.op
SELECTIONS = {
    "nn.max_pool2d": lambda x: op.nn.max_pool2d(x, (2, 2), padding=(1, 1)),
    "strided_slice": lambda x: op.strided_slice(x, [1], [1], [3]),
    "take": lambda x: op.take(x, constant(np.array([3, 1, 1])), axis=1),
    "nn.pad": lambda x: op.nn.pad(x, (0, 0, 0, 0, 1, 2, 0, 1)),
    "concat": lambda x: op.concat([x, x], axis=1),
    "image.resize2d": lambda x: op.image.resize2d(x, (6, 6), method="nearest_neighbor", rounding_method="floor"),
}


def in_front_of_a_convolution(select):
    def body(emit, x):
        y = emit(select(qdq(emit, x, 0.05, 100)))
        return quantize(emit, emit(op.nn.conv2d(y, int8_weight(emit, 5, y.ty.shape[1].value, 1, 1))), 0.02, 3)

    return module(body, x=(2, 4, 5, 5))


@pytest.mark.parametrize("name", SELECTIONS)
def test_the_convolution_reads_integers(name):
    before = in_front_of_a_convolution(SELECTIONS[name])
    after = transformed(DequantizeLate(), before)
    assert ops(after).count("quantize") == ops(before).count("quantize") + 1
    specs = main_orders(pipeline.order()(before))
    assert {tensor.dtype for spec in specs for tensor in (*spec.inputs, spec.result)} == {"uint8"}
    inputs = random_inputs(before)
    np.testing.assert_array_equal(run(before, *inputs), run(after, *inputs))


def test_a_chain_of_selections():
    def body(emit, x):
        y = emit(op.nn.max_pool2d(qdq(emit, x), (2, 2)))
        y = emit(op.concat([y, emit(op.nn.max_pool2d(y, (3, 3), padding=(1, 1)))], axis=1))
        return emit(op.nn.conv2d(y, int8_weight(emit, 5, 8, 1, 1)))

    before = module(body, x=(2, 4, 6, 6))
    after = transformed(DequantizeLate(), before)
    assert ops(after).count("quantize") == 1 + 3
    inputs = random_inputs(before)
    np.testing.assert_array_equal(run(before, *inputs), run(after, *inputs))


def test_shuffled_channels_keep_scales_of_their_own():
    scale, zero_point = constant(f32(4, low=0.02, high=0.09)), constant(np.array([0, 90, 128, 255], "uint8"))

    def body(emit, x):
        y = emit(op.dequantize(emit(op.quantize(x, scale, zero_point, 1, "uint8")), scale, zero_point, 1))
        y = emit(op.take(y, constant(np.array([2, 0, 3, 1])), axis=1))
        y = emit(op.nn.conv2d(y, int8_weight(emit, 4, 1, 3, 3), padding=(1, 1), groups=4))
        return quantize(emit, y, 0.02, 3)

    before = module(body, x=(2, 4, 5, 5))
    after, inputs = transformed(DequantizeLate(), before), random_inputs(before)
    np.testing.assert_array_equal(run(before, *inputs), run(after, *inputs))
    specs = main_orders(pipeline.order()(before))
    assert {tensor.dtype for spec in specs for tensor in (*spec.inputs, spec.result)} == {"uint8"}


def other_scales(emit, x):
    y = emit(op.concat([qdq(emit, x, 0.05), qdq(emit, x, 0.06)], axis=1))
    return emit(op.nn.conv2d(y, int8_weight(emit, 5, 8, 1, 1)))


def averaged(emit, x):
    return emit(op.nn.conv2d(emit(op.nn.avg_pool2d(qdq(emit, x), (2, 2))), int8_weight(emit, 5, 4, 1, 1)))


def quantised_anew(emit, x):
    return quantize(emit, emit(op.nn.max_pool2d(qdq(emit, x), (2, 2))), 0.07)


def an_output(emit, x):
    return emit(op.nn.max_pool2d(qdq(emit, x), (2, 2)))


def read_by_an_island(emit, x):
    return emit(op.nn.softmax(emit(op.nn.max_pool2d(qdq(emit, x), (2, 2)))))


@pytest.mark.parametrize(
    "body", [other_scales, averaged, quantised_anew, an_output, read_by_an_island], ids=lambda body: body.__name__
)
def test_what_stays(body):
    before = rebuild(module(body, x=(1, 4, 6, 6)), lambda *_: None)
    assert_unchanged(before, transformed(DequantizeLate(), before))
