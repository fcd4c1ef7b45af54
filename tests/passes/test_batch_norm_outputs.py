"""What batch norms say about tensors of the canonical network, whichever way they are folded."""

import numpy as np
import pytest
from tvm import relax
from tvm.relax import op

from tests.passes.pass_testing import const, f32, module
from tvm_int8 import pipeline
from tvm_int8.passes.batch_norm_outputs import batch_norm_outputs
from tvm_int8.passes.dataflow import constant

GAMMA, BETA, MEAN, VAR = (f32(6, seed=seed, low=0.1, high=2) for seed in range(4))
SHAPE = (1, 4, 6, 6)


def convolved(emit, x):
    return emit(op.nn.conv2d(x, const(6, 4, 3, 3)), "conv")


def normalised(emit, x, gamma=GAMMA, axis=1, **flags):
    parameters = [constant(array) for array in (gamma, BETA, MEAN, VAR)]
    results = emit(op.nn.batch_norm(x, *parameters, axis=axis, epsilon=0.5, training=False, **flags), "bn")
    return emit(relax.TupleGetItem(results, 0), "y")


def known(body, shape=SHAPE):
    imported = module(body, layer_names={}, x=shape)
    return batch_norm_outputs(imported, pipeline.canonical_float()(imported))


def test_folded_into_a_convolution():
    output = known(lambda emit, x: op.nn.relu(normalised(emit, convolved(emit, x), -GAMMA)))["y"]
    np.testing.assert_allclose(output.mean, BETA)
    np.testing.assert_allclose(output.std, GAMMA * np.sqrt(VAR / (VAR + 0.5)), rtol=1e-6)


def test_where_it_stands():
    assert list(known(lambda emit, x: op.nn.relu(normalised(emit, x)), shape=(1, 6, 4, 4))) == ["y"]


def test_without_scale_and_center():
    output = known(lambda emit, x: op.nn.relu(normalised(emit, convolved(emit, x), scale=False, center=False)))["y"]
    np.testing.assert_array_equal(output.mean, 0)
    np.testing.assert_allclose(output.std, np.sqrt(VAR / (VAR + 0.5)), rtol=1e-6)


def scaled_behind(emit, x):
    return op.nn.relu(emit(op.multiply(normalised(emit, convolved(emit, x)), const(1, 6, 1, 1)), "scaled"))


def channels_last(emit, x):
    return op.nn.relu(normalised(emit, x, axis=3))


@pytest.mark.parametrize(("body", "shape"), [(scaled_behind, SHAPE), (channels_last, (1, 4, 4, 6))])
def test_batch_norms_that_say_nothing(body, shape):
    assert known(body, shape) == {}
