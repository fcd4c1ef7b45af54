"""SimulateQuantization: tensors rounded as parameters say, exactly as NumPy rounds them, or not at all."""

import numpy as np
import pytest
import tvm
from tvm import relax

from tests.passes.pass_testing import assert_unchanged, const, f32, module, names, ops, run
from tvm_int8.errors import register_with_tvm
from tvm_int8.passes.dataflow import Dataflow, shape_of
from tvm_int8.passes.observe import Observe
from tvm_int8.passes.quantizers import ActivationQuantizer
from tvm_int8.passes.simulate_quantization import ROLES, SimulateQuantization, parameter_values

op = relax.op
register_with_tvm()

TENSOR = ActivationQuantizer(np.float32(0.013).reshape(()), np.asarray(97, np.int64))
CHANNELS = ActivationQuantizer(f32(4, low=0.004, high=0.02), np.array([0, 17, 128, 255]))
SIMULATED = ["multiply", "round", "maximum", "minimum", "multiply", "subtract", "multiply", "add"]


def network(emit, x):
    y = emit(op.nn.conv2d(x, const(4, 3, 3, 3), padding=1), "conv")
    z = emit(op.nn.relu(y), "relu")
    return op.add(emit(op.nn.conv2d(z, const(5, 4, 1, 1)), "left"), emit(op.sum(z, 1, keepdims=True), "right"))


def small(emit, x):
    """Two tensors to be rounded, and two outputs that show them."""
    y = emit(op.multiply(x, const(1, 4, 1, 1, low=0.5, high=1.5)), "scaled")
    return [op.negative(y), op.add(y, y)]


def simulated(before, *points):
    text = before.script()
    after = SimulateQuantization(points)(before)
    relax.analysis.well_formed(after)
    assert before.script() == text
    return after


def parameters(mod, **quantizers):
    """Arguments behind the inputs, in the order of `quantizers`."""
    shapes = {var.name: shape_of(var) for var in (*mod["main"].params, *Dataflow(mod).producer)}
    return [value for name, q in quantizers.items() for value in parameter_values(q, shapes[name])]


def rounded(mod, point, quantizer, x):
    """The outputs of a module whose tensor `point` is rounded."""
    return run(simulated(mod, point), x, *parameters(mod, **{point: quantizer}))


# Structure


def test_a_tensor_is_rounded_once_for_all_its_readers():
    after = simulated(module(network, x=(1, 3, 6, 6)), "relu")
    assert ops(after) == ["nn.conv2d", "nn.relu", *SIMULATED, "nn.conv2d", "sum", "add"]
    assert [param.name for param in after["main"].params] == ["x", *(f"relu_{role}" for role in ROLES)]
    flow = Dataflow(after)
    (rounded_var,) = [var for var in flow.producer if var.name == "relu_simulated"]
    assert [reader.var.name for reader in flow.consumers[rounded_var]] == ["left", "right"]


def test_inputs_are_points_and_parameters_come_in_the_order_asked_for():
    after = simulated(module(network, x=(1, 3, 6, 6)), "relu", "x")
    assert [param.name for param in after["main"].params[1::5]] == ["relu_inverse", "x_inverse"]
    assert ops(after)[: len(SIMULATED) + 1] == [*SIMULATED, "nn.conv2d"]
    assert {shape_of(param) for param in after["main"].params[1:]} == {(1, 4, 1, 1), (1, 3, 1, 1)}


def test_without_points_nothing_changes():
    before = module(network, x=(1, 3, 6, 6))
    assert_unchanged(before, simulated(before))


def test_a_tensor_that_nobody_reads_keeps_its_parameters_but_is_not_rounded():
    before = module(lambda emit, x: op.nn.relu(x), x=(1, 3, 4, 4))
    after = simulated(before, "out")
    assert ops(after) == ops(before)
    assert len(after["main"].params) == 6


def test_attributes_and_layer_names_stay():
    before = module(network, {"relu": "/layer1/relu"}, x=(1, 3, 6, 6))
    after = simulated(before, "relu")
    assert list(after["main"].attrs["input_names"]) == ["x"]
    assert after["main"].attrs["layer_names"]["relu"] == "/layer1/relu"


def test_a_name_that_is_not_there():
    with pytest.raises(KeyError, match="nothing"):
        simulated(module(network, x=(1, 3, 6, 6)), "nothing")


# Numbers


@pytest.mark.parametrize("point", ["x", "scaled"])
def test_share_zero_is_the_float_network_bit_by_bit(point):
    before, x = module(small, x=(2, 4, 5, 3)), f32(2, 4, 5, 3, low=-3, high=3)
    for expected, found in zip(run(before, x), rounded(before, point, None, x), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("quantizer", [TENSOR, CHANNELS], ids=["tensor", "channels"])
@pytest.mark.parametrize("point", ["x", "scaled"])
def test_share_one_rounds_as_numpy_does(point, quantizer):
    """Both outputs see the rounded tensor; values on both sides of the range saturate."""
    before, x = module(small, x=(2, 4, 5, 3)), f32(2, 4, 5, 3, low=-4, high=4)
    factor = f32(1, 4, 1, 1, low=0.5, high=1.5)
    wanted = quantizer.rounded(x) * factor if point == "x" else quantizer.rounded(x * factor)
    negative, twice = rounded(before, point, quantizer, x)
    np.testing.assert_allclose(negative, -wanted, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(twice, 2 * wanted, rtol=2e-6, atol=2e-6)
    assert len(np.unique(wanted)) > 20
    assert np.abs(wanted - (x if point == "x" else x * factor)).max() > 1


def test_a_rounded_tensor_lies_on_the_grid():
    before, x = module(small, x=(2, 4, 5, 3)), f32(2, 4, 5, 3, low=-2, high=2)
    grid = -rounded(before, "scaled", CHANNELS, x)[0] / CHANNELS.scale.reshape(1, -1, 1, 1)
    assert np.abs(grid - np.rint(grid)).max() < 1e-4


def test_zero_is_exact():
    before = module(small, x=(2, 4, 5, 3))
    negative, _ = rounded(before, "scaled", CHANNELS, np.zeros((2, 4, 5, 3), np.float32))
    assert not negative.any()


def test_half_a_share_is_half_the_way():
    before, x = module(small, x=(2, 4, 5, 3)), f32(2, 4, 5, 3, low=-2, high=2)
    arguments = parameters(before, x=TENSOR)
    arguments[ROLES.index("share")] *= 0.5
    _, found = run(simulated(before, "x"), x, *arguments)
    exact, whole = run(before, x)[1], rounded(before, "x", TENSOR, x)[1]
    np.testing.assert_allclose(found, (exact + whole) / 2, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 6)])
def test_tensors_of_other_ranks(shape):
    before, x = module(lambda emit, x: op.negative(x), x=shape), f32(*shape, low=-4, high=4)
    assert {value.shape for value in parameter_values(TENSOR, shape)} == {(3, 4, *[1] * (len(shape) - 2))}
    np.testing.assert_allclose(rounded(before, "x", TENSOR, x)[0], -TENSOR.rounded(x), rtol=2e-6, atol=1e-6)


def test_two_points_one_behind_the_other():
    before, x = module(small, x=(2, 4, 5, 3)), f32(2, 4, 5, 3, low=-2, high=2)
    mod = simulated(before, "scaled", "x")
    found, _ = run(mod, x, *parameters(before, scaled=CHANNELS, x=TENSOR))
    wanted = CHANNELS.rounded(TENSOR.rounded(x) * f32(1, 4, 1, 1, low=0.5, high=1.5))
    # Values in the middle between two integers may go either way.
    off = np.abs(-found - wanted) / CHANNELS.scale.reshape(1, -1, 1, 1)
    assert off.max() < 1.001
    assert (off > 1e-3).mean() < 0.02


def test_observed_tensors_are_those_in_front_of_rounding():
    before, x = module(small, x=(2, 4, 5, 3)), f32(2, 4, 5, 3, low=-2, high=2)
    after = Observe(["scaled"])(simulated(before, "scaled"))
    assert "scaled" in names(after)
    seen = run(after, x, *parameters(before, scaled=TENSOR))[2]
    np.testing.assert_array_equal(seen, x * f32(1, 4, 1, 1, low=0.5, high=1.5))


def test_before_and_after():
    """The whole of it, as TVM prints it."""

    def expected(emit, x, inverse, low, high, scale, share):
        steps = emit(op.round(emit(op.multiply(x, inverse))))
        steps = emit(op.minimum(emit(op.maximum(steps, low)), high))
        error = emit(op.subtract(emit(op.multiply(steps, scale)), x))
        return op.negative(emit(op.add(x, emit(op.multiply(error, share)))))

    before = module(lambda emit, x: op.negative(x), x=(2, 3, 4, 4))
    shapes = dict.fromkeys(ROLES, (2, 3, 1, 1))
    wanted = module(expected, x=(2, 3, 4, 4), **shapes)["main"].with_attr("input_names", ["x"])
    tvm.ir.assert_structural_equal(simulated(before, "x")["main"], wanted)
