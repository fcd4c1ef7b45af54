"""MergeQuantizes: equal quantizes of one tensor become one."""

import numpy as np
import pytest
from tvm import relax

from tests.passes.pass_testing import assert_unchanged, module, ops, run, transformed
from tests.passes.qdq_testing import dequantize, qdq, quantize, random_inputs
from tvm_int8.passes.dataflow import rebuild
from tvm_int8.passes.merge_quantizes import MergeQuantizes

op = relax.op


def pairs_for_each_reader(emit, x):
    x = emit(op.nn.relu(x))
    return emit(op.add(emit(op.nn.max_pool2d(qdq(emit, x))), qdq(emit, x)))


def test_every_reader_reads_the_same_integers():
    before = module(pairs_for_each_reader, x=(1, 3, 4, 4))
    after = transformed(MergeQuantizes(), before)
    assert ops(before).count("quantize") == 2
    assert ops(after).count("quantize") == 1
    inputs = random_inputs(before)
    np.testing.assert_array_equal(run(before, *inputs), run(after, *inputs))


@pytest.mark.parametrize("second", [(0.06, 128), (0.05, 127), (0.05, 0, "int8")])
def test_other_parameters_are_other_integers(second):
    def body(emit, x):
        first = qdq(emit, x)
        return emit(op.add(first, qdq(emit, x, *second)))

    before = rebuild(module(body, x=(1, 3, 4, 4)), lambda *_: None)
    assert_unchanged(before, transformed(MergeQuantizes(), before))


def test_two_outputs_may_be_one_tensor():
    before = module(lambda emit, x: [quantize(emit, x), dequantize(emit, quantize(emit, x))], x=(2, 9))
    inputs = random_inputs(before)
    for expected, actual in zip(run(before, *inputs), run(MergeQuantizes()(before), *inputs), strict=True):
        np.testing.assert_array_equal(actual, expected)
