"""Observe: inner tensors behind the outputs, nothing else changed."""

import numpy as np
import pytest
from tvm import relax

from tests.passes.pass_testing import const, f32, module, names, run
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.groups import fusion_groups
from tvm_int8.passes.observe import Observe

op = relax.op


def network(emit, x):
    y = emit(op.nn.conv2d(x, const(4, 3, 3, 3)), "conv")
    y = emit(op.nn.relu(emit(op.add(y, const(1, 4, 1, 1)), "bias")), "relu")
    return emit(op.nn.max_pool2d(y, (2, 2)), "pool")


@pytest.fixture
def before():
    return module(network, x=(1, 3, 6, 6))


@pytest.mark.parametrize("points", [["relu"], ["pool", "conv"], []])
def test_points_are_returned_behind_the_outputs(before, points):
    text = before.script()
    after = Observe(points)(before)
    relax.analysis.well_formed(after)
    assert before.script() == text
    assert names(after) == names(before)
    assert [var.name for var in Dataflow(after).outputs] == ["out", *points]


def test_the_values_are_those_of_the_network(before):
    x = f32(1, 3, 6, 6)
    output, relu, pool = run(Observe(["relu", "pool"])(before), x)
    assert (relu >= 0).all()
    np.testing.assert_array_equal(output, run(before, x)[0])
    np.testing.assert_array_equal(output, pool)


def test_several_outputs_come_first(before):
    before = module(lambda emit, x: [emit(op.nn.relu(x), "a"), emit(op.sigmoid(x), "b")], x=(1, 3, 6, 6))
    assert len(Dataflow(Observe(["a"])(before)).outputs) == 3


def test_what_is_observed_is_stored_and_the_rest_still_fused(before):
    groups = fusion_groups(Dataflow(Observe(["relu"])(before)))
    assert [len(group.bindings) for group in groups] == [3, 1]


def test_a_name_that_is_not_there(before):
    with pytest.raises(KeyError, match="nothing"):
        Observe(["nothing"])(before)
