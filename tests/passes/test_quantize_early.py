"""QuantizeEarly: what is moved and then quantised is quantised first."""

import numpy as np
import pytest
from tvm import relax

from tests.passes.pass_testing import assert_unchanged, constant, module, ops, transformed
from tests.passes.qdq_testing import orders, qdq, quantize, random_inputs
from tvm_int8 import pipeline
from tvm_int8.passes.dataflow import rebuild
from tvm_int8.passes.order_kernels import OrderKernels
from tvm_int8.passes.quantize_early import QuantizeEarly
from tvm_int8.reference.network import run_network

op = relax.op
MOVERS = {
    "nn.max_pool2d": lambda x: op.nn.max_pool2d(x, (2, 2), padding=(1, 1)),
    "strided_slice": lambda x: op.strided_slice(x, [1], [1], [3]),
    "take": lambda x: op.take(x, constant(np.array([3, 1, 1])), axis=1),
    "nn.pad": lambda x: op.nn.pad(x, (0, 0, 0, 0, 1, 2, 0, 1)),
    "image.resize2d": lambda x: op.image.resize2d(x, (6, 6), method="nearest_neighbor", rounding_method="floor"),
}


def behind_relu(move):
    def body(emit, x):
        return quantize(emit, emit(move(emit(op.nn.relu(qdq(emit, x, 0.05, 128))))), 0.0213, 3)

    return module(body, x=(2, 4, 5, 5))


@pytest.mark.parametrize("name", MOVERS)
def test_movement_is_of_integers(name):
    before = behind_relu(MOVERS[name])
    after = transformed(QuantizeEarly(), before)
    assert ops(after)[-4:] == ["quantize", "dequantize", name, "quantize"]
    inputs = random_inputs(before)
    (expected,) = run_network(OrderKernels()(before), *inputs)
    ordered = pipeline.order()(before)
    (actual,) = run_network(ordered, *inputs)
    np.testing.assert_array_equal(actual, expected)
    assert [spec.result.dtype for spec in orders(ordered)] == ["uint8"] * len(orders(ordered))


def test_every_part_of_a_concatenation():
    def body(emit, x):
        parts = [emit(op.nn.relu(x)), qdq(emit, x, 0.03, 7), emit(op.nn.max_pool2d(emit(op.abs(x))))]
        return quantize(emit, emit(op.concat(parts, axis=1)), 0.0213, 3)

    before = module(body, x=(1, 4, 5, 5))
    after = transformed(QuantizeEarly(), before)
    assert ops(after).count("quantize") == ops(before).count("quantize") + 3
    ordered, inputs = pipeline.order()(before), random_inputs(before)
    np.testing.assert_array_equal(run_network(ordered, *inputs), run_network(OrderKernels()(before), *inputs))


def read_by_another(emit, x):
    y = emit(op.nn.relu(x))
    return [emit(op.sigmoid(y)), quantize(emit, emit(op.nn.max_pool2d(y)))]


def rescaled_while_it_moves(emit, x):
    return quantize(emit, emit(op.nn.max_pool2d(qdq(emit, x, 0.05, 128))), 0.0213, 3)


def part_of_a_concatenation_read_by_another(emit, x):
    y, z = emit(op.nn.relu(x)), emit(op.abs(x))
    return [emit(op.sigmoid(y)), quantize(emit, emit(op.concat([y, z], axis=1)))]


def averaged(emit, x):
    return quantize(emit, emit(op.nn.avg_pool2d(emit(op.nn.relu(x)), (2, 2))))


def padded_with_ones(emit, x):
    return quantize(emit, emit(op.nn.pad(emit(op.nn.relu(x)), (0, 0, 0, 0, 1, 1, 1, 1), pad_value=1.0)))


STAY = [
    read_by_another, rescaled_while_it_moves, part_of_a_concatenation_read_by_another, averaged, padded_with_ones
]  # fmt: skip


@pytest.mark.parametrize("body", STAY, ids=lambda body: body.__name__)
def test_what_stays(body):
    before = rebuild(module(body, x=(1, 3, 4, 4)), lambda *_: None)
    assert_unchanged(before, transformed(QuantizeEarly(), before))
