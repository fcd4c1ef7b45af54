"""MoveIntegers: movement between equal scales happens in bytes."""

import numpy as np
import pytest
from tvm import relax

from tests.passes.pass_testing import constant, module, ops, run, transformed
from tests.passes.qdq_testing import qdq, random_inputs
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.expressions import dtype_of, op_name
from tvm_int8.passes.move_integers import MoveIntegers

op = relax.op
MOVERS = {
    "reshape": lambda x: op.reshape(x, (2, 36)),
    "permute_dims": lambda x: op.permute_dims(x, (0, 2, 3, 1)),
    "strided_slice": lambda x: op.strided_slice(x, [1, 3], [1, 0], [4, 3], [1, 2]),
    "take": lambda x: op.take(x, constant(np.array([3, 1, 1])), axis=1),
}


def between(move, *second):
    def body(emit, x):
        moved = emit(move(qdq(emit, x, 0.05, 7)), "moved")
        return qdq(emit, moved, *(second or (0.05, 7)))

    return module(body, x=(2, 4, 3, 3))


@pytest.mark.parametrize("name", MOVERS)
def test_bytes_are_moved(name):
    before = between(MOVERS[name])
    after = transformed(MoveIntegers(), before)
    assert ops(after) == ["quantize", name, "dequantize"]
    (call,) = [b.value for b in Dataflow(after).bindings if op_name(b.value) == name]
    assert dtype_of(call) == "uint8"
    inputs = random_inputs(before)
    np.testing.assert_array_equal(run(before, *inputs), run(after, *inputs))


@pytest.mark.parametrize("second", [(0.06, 7), (0.05, 8), (0.05, 7, "int8")])
def test_another_scale_needs_arithmetic(second):
    before = between(MOVERS["reshape"], *second)
    assert ops(transformed(MoveIntegers(), before)).count("quantize") == 2


def test_a_movement_in_float_stays():
    before = module(lambda emit, x: qdq(emit, emit(op.reshape(x, (2, 36)))), x=(2, 4, 3, 3))
    assert ops(transformed(MoveIntegers(), before))[0] == "reshape"


def test_other_readers_keep_the_float_tensor():
    def body(emit, x):
        moved = emit(op.reshape(qdq(emit, x), (2, 36)))
        return [moved, qdq(emit, moved)]

    after = transformed(MoveIntegers(), module(body, x=(2, 4, 3, 3)))
    assert sorted(ops(after)).count("reshape") == 2
    assert ops(after).count("quantize") == 1
