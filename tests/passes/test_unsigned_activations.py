"""UnsignedActivations: int8 activations become uint8, to the last bit."""

import numpy as np
import pytest
from tvm import relax

from tests.passes.pass_testing import call_named, constant, f32, module, run, transformed
from tests.passes.qdq_testing import dequantize, int8_weight, qdq, quantize
from tvm_int8.passes.dataflow import Dataflow, rebuild
from tvm_int8.passes.expressions import const_value, dtype_of, op_name
from tvm_int8.passes.unsigned_activations import UnsignedActivations

op = relax.op


def activation_dtypes(mod):
    return [dtype_of(b.value) for b in Dataflow(mod).bindings if op_name(b.value) == "quantize"]


@pytest.mark.parametrize("zero_point", [-128, -3, 0, 127])
def test_the_zero_point_moves_with_the_numbers(zero_point):
    before = module(lambda emit, x: qdq(emit, x, 0.05, zero_point, "int8"), x=(2, 3, 40, 40))
    after = transformed(UnsignedActivations(), before)
    assert int(const_value(call_named(after, "quantize").args[2])) == zero_point + 128
    x = f32(2, 3, 40, 40, low=-20, high=20)
    (expected,), (actual,) = run(before, x), run(after, x)
    assert actual.tobytes() == expected.tobytes()


def test_all_readers_follow():
    def body(emit, x):
        q = quantize(emit, x, 0.05, 5, "int8")
        return [dequantize(emit, q, 0.05, 5, "int8"), emit(op.nn.relu(dequantize(emit, q, 0.05, 5, "int8")))]

    before = module(body, x=(2, 9))
    after = transformed(UnsignedActivations(), before)
    assert activation_dtypes(after) == ["uint8"]
    x = f32(2, 9, low=-9, high=9)
    np.testing.assert_array_equal(run(before, x), run(after, x))


def test_weights_stay_int8():
    def body(emit, x):
        return emit(op.nn.conv2d(qdq(emit, x, 0.05, 0, "int8"), int8_weight(emit, 4, 3, 1, 1)))

    after = transformed(UnsignedActivations(), module(body, x=(1, 3, 4, 4)))
    weight = [
        b.value
        for b in Dataflow(after).bindings
        if op_name(b.value) == "dequantize" and const_value(b.value.args[0]) is not None
    ]
    assert [dtype_of(call.args[0]) for call in weight] == ["int8"]


def converted(mod):
    """(before, after) of a module without the aliases that the test's builder leaves in front of outputs."""
    before = rebuild(mod, lambda *_: None)
    return before, transformed(UnsignedActivations(), before)


def test_an_output_is_converted():
    def body(emit, x):
        q = quantize(emit, x, 0.05, 4, "int8")
        return [q, dequantize(emit, q, 0.05, 4, "int8")]

    before, after = converted(module(body, x=(2, 9)))
    assert activation_dtypes(after) == ["uint8", "int8"]
    x = f32(2, 9, low=-9, high=9)
    for expected, actual in zip(run(before, x), run(after, x), strict=True):
        assert actual.dtype == expected.dtype
        np.testing.assert_array_equal(actual, expected)


def test_an_input_is_converted():
    before, after = converted(
        module(lambda emit, x: emit(op.nn.relu(dequantize(emit, x, 0.05, 4, "int8"))), dtype="int8", x=(2, 128))
    )
    assert activation_dtypes(after) == ["uint8"]
    x = np.arange(-128, 128).astype("int8").reshape(2, 128)
    np.testing.assert_array_equal(run(before, x), run(after, x))


def test_channels_with_zero_points_of_their_own():
    scale, zero_point = constant(f32(9, low=0.1)), constant(np.arange(-4, 5, dtype="int8"))

    def body(emit, x):
        q = emit(op.quantize(x, scale, zero_point, axis=1, out_dtype="int8"))
        return emit(op.dequantize(q, scale, zero_point, axis=1))

    before, after = converted(module(body, x=(2, 9)))
    assert activation_dtypes(after) == ["uint8"]
    x = f32(2, 9, low=-90, high=90)
    np.testing.assert_array_equal(run(before, x), run(after, x))


def test_integers_that_others_read_stay():
    def moved(emit, x):
        return dequantize(emit, emit(op.reshape(quantize(emit, x, 0.05, 0, "int8"), (9, 2))), 0.05, 0, "int8")

    after = transformed(UnsignedActivations(), module(moved, x=(2, 9)))
    assert activation_dtypes(after) == ["int8"]
