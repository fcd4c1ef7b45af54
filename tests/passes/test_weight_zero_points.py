"""Weights with zero points: convolutions on integers all the same."""

import numpy as np
import pytest
from tvm import relax

from tests.passes.pass_testing import constant, f32, module
from tests.passes.qdq_testing import assert_orders_compute, leftovers, main_orders, qdq, quantize
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.expressions import op_name
from tvm_int8.passes.weight_zero_points import integer_weight
from tvm_int8.specs import Conv2d

op = relax.op
CONVOLUTIONS = {
    "plain": ((20, 7, 3, 3), {"padding": (1, 1)}),
    "strided": ((20, 7, 3, 3), {"strides": (2, 2), "padding": (0, 1, 2, 1)}),
    "groups": ((14, 7, 3, 3), {"groups": 2}),
    "depthwise": ((14, 1, 3, 3), {"groups": 14, "padding": (1, 1)}),
    "dilated": ((5, 14, 3, 3), {"dilation": (2, 2), "padding": (2, 2)}),
    "transposed": ((7, 20, 2, 2), {"strides": (2, 2)}),
    "transposed groups": ((14, 3, 3, 3), {"strides": (2, 2), "padding": (1, 1), "groups": 2}),
}


def weight_with_zero_points(emit, shape, axis, zero_point, low=-128, high=127):
    channels = shape[axis]
    values = np.random.default_rng(3).integers(low, high + 1, shape).astype("int8")
    values.flat[:2] = low, high
    zeros = np.broadcast_to(np.asarray(zero_point, "int8"), (channels,)).copy()
    return emit(op.dequantize(constant(values), constant(f32(channels, low=0.001, high=0.003)), constant(zeros), axis))


def network(name, zero_point, **values):
    shape, options = CONVOLUTIONS[name]
    transposed = name.startswith("transposed")
    channels = shape[0] if transposed else shape[1] * options.get("groups", 1)
    apply, axis = (op.nn.conv2d_transpose, 1) if transposed else (op.nn.conv2d, 0)

    def body(emit, x):
        weight = weight_with_zero_points(emit, shape, axis, zero_point, **values)
        y = emit(apply(qdq(emit, x, 0.05, 100), weight, **options))
        y = emit(op.add(y, constant(f32(1, y.ty.shape[1].value, 1, 1))))
        return quantize(emit, emit(op.nn.relu(y)), 0.02, 5)

    return module(body, x=(2, channels, 8, 7))


@pytest.mark.parametrize("zero_point", [-31, 100])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_of_integers(name, zero_point):
    after = assert_orders_compute(network(name, zero_point), 1)
    sums, conv = main_orders(after)
    assert isinstance(sums, Conv2d)
    assert isinstance(conv, Conv2d)
    assert {spec.inputs[0].dtype for spec in (sums, conv)} == {"uint8"}
    assert sums.result.shape[1] == (conv.result.shape[1] if conv.groups > 1 else 1)
    assert leftovers(after) == []


def test_zero_points_that_leave_weights_int8_cost_nothing():
    after = assert_orders_compute(network("plain", 64, low=0, high=127), 1)
    (conv,) = main_orders(after)
    assert conv.inputs[0].dtype == "uint8"


def test_channels_without_a_zero_point():
    zeros = np.zeros(20, "int8")
    zeros[[3, 17]] = 50, -9
    assert_orders_compute(network("plain", zeros), 1)


def test_scales_along_another_axis_are_refused():
    def body(emit, x):
        return emit(op.nn.conv2d(x, weight_with_zero_points(emit, (4, 4, 1, 1), 1, 3)))

    flow = Dataflow(module(body, x=(1, 4, 3, 3)))
    (conv,) = [binding.value for binding in flow.bindings if op_name(binding.value) == "nn.conv2d"]
    assert integer_weight(flow, conv.args[1], 0) is None
    assert integer_weight(flow, conv.args[1], 1) is not None
