"""AbsorbHighBiases: what every input adds to a channel moves behind the ReLU."""

import numpy as np
import pytest
from tvm import relax

from tests.passes.pass_testing import assert_unchanged, const, f32, module, names, run
from tvm_int8 import pipeline
from tvm_int8.passes.absorb_high_biases import AbsorbHighBiases
from tvm_int8.passes.batch_norm_outputs import batch_norm_outputs
from tvm_int8.passes.dataflow import Dataflow, const_value, constant, op_name
from tvm_int8.passes.equalized_tensors import equalized_tensors

op = relax.op

BETA = np.array([5.0, -5.0, 0.5, 3.2], np.float32)  # of a channel far above zero, far below, around it, just above
GAMMA = np.array([0.5, 0.5, 1.0, 1.0], np.float32)
ABSORBED = np.array([3.5, 0.0, 0.0, 0.2])


def normalised(emit, x):
    """A convolution whose outputs have mean BETA and standard deviation GAMMA on standard normal inputs."""
    weight = f32(4, 3, 1, 1)
    variance = (weight.astype(np.float64) ** 2).sum((1, 2, 3)).astype(np.float32)
    y = emit(op.nn.conv2d(x, constant(weight)), "conv1")
    parameters = [constant(array) for array in (GAMMA, BETA, np.zeros(4, np.float32), variance)]
    results = emit(op.nn.batch_norm(y, *parameters, axis=1, epsilon=0.0, training=False), "bn")
    return emit(relax.TupleGetItem(results, 0), "y")


def imported(between, padding=0, bias=True):
    def body(emit, x):
        y = emit(op.nn.conv2d(between(emit, normalised(emit, x)), const(5, 4, 1, 1, seed=2), padding=padding), "conv2")
        return emit(op.add(y, const(1, 5, 1, 1, seed=3)), "bias2") if bias else y

    return module(body, x=(2, 3, 16, 16))


def absorbed(source):
    """(canonical float module, the same after the pass); a second run changes nothing."""
    before = pipeline.canonical_float()(source)
    after = AbsorbHighBiases(source)(before)
    relax.analysis.well_formed(after)
    assert_unchanged(after, AbsorbHighBiases(source)(after))
    return before, after


def relu(emit, y):
    return emit(op.nn.relu(y), "relu1")


def constants_added(mod):
    return [const_value(b.value.args[1]).ravel() for b in Dataflow(mod).bindings if op_name(b.value) == "add"]


ABSORBING = {
    "nothing": lambda emit, y: y,
    "relu": relu,
    "leaky": lambda emit, y: emit(op.nn.leakyrelu(y, 0.1)),
    "prelu": lambda emit, y: emit(op.nn.prelu(y, const(4, seed=6, low=0), axis=1)),
    "max_pool": lambda emit, y: emit(op.nn.max_pool2d(relu(emit, y), (3, 3), padding=1)),
    "avg_pool": lambda emit, y: emit(op.nn.avg_pool2d(relu(emit, y), (2, 2))),
}


@pytest.mark.parametrize("between", ABSORBING)
def test_high_biases_move_into_the_next_layer(between):
    before, after = absorbed(imported(ABSORBING[between]))
    lowered = constants_added(before)[0] - constants_added(after)[0]
    np.testing.assert_allclose(lowered, ABSORBED, atol=1e-5)
    x = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)
    (expected,), (actual,) = run(before, x), run(after, x)
    different = np.abs(actual - expected) > 1e-5 * np.abs(expected).max()
    assert different.mean() < (0.01 if "pool" in between else 0.003)  # values below beta - 3 gamma are one in 740
    assert np.abs(actual - expected).max() < 0.5


def test_the_next_layers_bias_stays_one_addition():
    source = imported(relu)
    before = pipeline.canonical_float()(source)
    after = pipeline.equalize(source)(before)
    assert len(constants_added(after)) == len(constants_added(before)) == 2


def test_a_layer_without_a_bias_gets_one():
    before, after = absorbed(imported(relu, bias=False))
    assert len(constants_added(after)) == len(constants_added(before)) + 1


def test_shifted_tensors_have_names_of_their_own():
    source = imported(relu)
    before, after = absorbed(source)
    assert names(before)[:3] == ["conv1", "y", "relu1"]
    assert names(after)[:3] == ["conv1", "y_equalized", "relu1_equalized"]
    np.testing.assert_allclose(equalized_tensors(after)["relu1_equalized"].shift, ABSORBED, atol=1e-5)
    stats = batch_norm_outputs(source, after)["y_equalized"]
    np.testing.assert_allclose(stats.mean, BETA - ABSORBED, rtol=1e-6)
    np.testing.assert_allclose(stats.std, GAMMA, rtol=1e-6)


REFUSED = {
    "padding behind": (relu, 1),
    "a padded average": (lambda emit, y: emit(op.nn.avg_pool2d(y, (2, 2), padding=1, count_include_pad=True)), 0),
    "a bound": (lambda emit, y: emit(op.clip(y, 0, 6)), 0),
    "a residual": (lambda emit, y: emit(op.add(y, relu(emit, y))), 0),
}


@pytest.mark.parametrize("case", REFUSED)
def test_where_the_shift_would_not_come_out(case):
    assert_unchanged(*absorbed(imported(*REFUSED[case])))


def test_without_batch_norms_nothing_is_known():
    def body(emit, x):
        y = emit(op.add(emit(op.nn.conv2d(x, const(4, 3, 1, 1))), constant(np.full((1, 4, 1, 1), 9, np.float32))))
        return op.nn.conv2d(relu(emit, y), const(5, 4, 1, 1))

    assert_unchanged(*absorbed(module(body, x=(1, 3, 4, 4))))
