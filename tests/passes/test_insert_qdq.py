"""InsertQdq: pairs where the plan wants integers, with the scales of the table."""

import numpy as np
import pytest
from tvm import relax

from tests.passes.pass_testing import const, module, ops, run
from tests.passes.qdq_testing import random_inputs
from tvm_int8.config import QuantizationConfig
from tvm_int8.errors import CalibrationError, register_with_tvm
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.expressions import const_value, op_name
from tvm_int8.passes.insert_qdq import InsertQdq
from tvm_int8.quantization.calibration_table import CalibrationTable, TensorRange
from tvm_int8.quantization.sqnr import sqnr_db

op = relax.op
register_with_tvm()


def table(**ranges):
    return CalibrationTable({name: TensorRange(low, high, "minmax", 1) for name, (low, high) in ranges.items()})


def network(emit, x):
    y = emit(op.nn.conv2d(x, const(5, 3, 3, 3), padding=1), "conv1")
    y = emit(op.nn.relu(emit(op.add(y, const(1, 5, 1, 1)), "bias1")), "relu1")
    y = emit(op.nn.max_pool2d(y, (2, 2), (2, 2)), "pool")
    return emit(op.nn.conv2d_transpose(y, const(5, 4, 2, 2, seed=3), strides=2), "up")


RANGES = table(x=(-6.0, 6.0), relu1=(0.0, 40.0))


@pytest.fixture
def before():
    return module(network, x=(1, 3, 8, 8))


def inserted(before, config=None, ranges=RANGES):
    text = before.script()
    after = InsertQdq(ranges, config or QuantizationConfig())(before)
    assert before.script() == text
    relax.analysis.well_formed(after)
    return after


def calls(mod, name):
    return [binding.value for binding in Dataflow(mod).bindings if op_name(binding.value) == name]


def test_pairs_stand_where_integers_are_wanted(before):
    assert ops(inserted(before)) == [
        "quantize", "dequantize", "dequantize", "nn.conv2d", "add", "nn.relu",
        "quantize", "dequantize", "nn.max_pool2d",
        "quantize", "dequantize", "dequantize", "nn.conv2d_transpose",
    ]  # fmt: skip


def test_scales_come_from_the_table_and_move_with_the_data(before):
    scales = [float(const_value(call.args[1])) for call in calls(inserted(before), "quantize")]
    np.testing.assert_allclose(scales, [12 / 255, 40 / 255, 40 / 255], rtol=1e-6)
    zero_points = [int(const_value(call.args[2])) for call in calls(inserted(before), "quantize")]
    assert zero_points[1:] == [0, 0]
    assert zero_points[0] in (127, 128)


@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_are_symmetric_int8(before, per_channel):
    after = inserted(before, QuantizationConfig(per_channel_weights=per_channel))
    flow = Dataflow(after)
    for name, axis, channels in (("nn.conv2d", 0, 5), ("nn.conv2d_transpose", 1, 4)):
        (call,) = calls(after, name)
        weight = flow.value(call.args[1])
        values, scale, zero_point = map(const_value, weight.args)
        assert values.dtype == np.int8
        assert values.min() >= -127
        assert not zero_point.any()
        assert scale.shape == ((channels,) if per_channel else ())
        if per_channel:
            assert int(weight.attrs.axis) == axis


def test_biases_stay_float(before):
    (add,) = calls(inserted(before), "add")
    assert const_value(add.args[1]).dtype == np.float32


def test_the_numbers_stay_close(before):
    inputs = random_inputs(before)
    (expected,), (actual,) = run(before, *inputs), run(inserted(before), *inputs)
    assert sqnr_db(expected, actual) > 25


def test_excluded_layers_keep_float_weights(before):
    after = inserted(before, QuantizationConfig(exclude=["conv1"]))
    (call,) = calls(after, "nn.conv2d")
    assert const_value(call.args[1]).dtype == np.float32
    assert len(calls(after, "quantize")) == 2  # the pool and its input


def test_an_input_of_two_layers_is_quantised_once():
    def fork(emit, x):
        left = emit(op.nn.conv2d(x, const(5, 3, 1, 1)), "left")
        return emit(op.add(left, emit(op.nn.conv2d(x, const(5, 3, 1, 1, seed=2)), "right")), "sum")

    after = inserted(module(fork, x=(1, 3, 4, 4)), ranges=table(x=(-1.0, 1.0), left=(-3.0, 3.0), right=(-3.0, 3.0)))
    data = [call for call in calls(after, "quantize") if call.args[0].name == "x"]
    assert len(data) == 1


def test_a_missing_range_is_named(before):
    with pytest.raises(CalibrationError, match="relu1"):
        InsertQdq(table(x=(-6.0, 6.0)), QuantizationConfig())(before)


def test_float_networks_are_left_alone():
    before = module(lambda emit, x: emit(op.nn.softmax(emit(op.nn.relu(x)), axis=1)), x=(1, 3, 4, 4))
    assert ops(inserted(before)) == ["nn.relu", "nn.softmax"]
