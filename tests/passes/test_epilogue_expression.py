"""The algebra of epilogues: what is folded, contracted and absorbed, and that the value stays the same."""

import numpy as np
import pytest

from tvm_int8.passes.epilogue_expression import (
    ACC,
    apply,
    channel,
    linearize,
    number,
    split_bias,
    split_clamp,
    tensor,
    with_output,
)
from tvm_int8.quantization import arithmetic
from tvm_int8.specs import Operand

SCALE, BIAS = channel(np.array([0.1, 0.2, 0.3])), channel(np.array([1.0, -2.0, 3.0]))


def value(root, acc, tensors=()):
    """Evaluate through a program."""
    program, channels, order = linearize(root, len(tensors))
    channels, used = iter(channels), iter(order)
    operands = [
        acc if o.kind == "acc" else next(channels).reshape(1, -1, 1) if o.kind == "channel" else tensors[next(used)]
        for o in program.operands
    ]
    return arithmetic.run_program(program, operands)


@pytest.fixture
def acc(rng):
    return rng.standard_normal((2, 3, 5)).astype(np.float32) * 10


def test_constants_fold():
    node = apply("mul", apply("mul", ACC, number(2.0)), number(0.5))
    assert node is ACC
    assert apply("add", apply("add", ACC, number(1.0)), number(-1.0)) is ACC
    assert apply("mul", number(2.0), number(3.0)).value == 6.0


def test_every_product_that_feeds_an_addition_is_contracted(acc):
    root = apply("add", apply("mul", ACC, SCALE), BIAS)
    program, _, _ = linearize(root, 0)
    assert [step[0] for step in program.steps] == ["fma"]
    np.testing.assert_allclose(
        value(root, acc), acc * SCALE.value.reshape(1, 3, 1) + BIAS.value.reshape(1, 3, 1), rtol=1e-6
    )


def test_bias_leaves_the_expression_only_when_the_accumulator_is_used_once(acc):
    root = apply("max", apply("add", apply("mul", ACC, SCALE), BIAS), number(0.0))
    stripped, scale, bias = split_bias(root)
    assert scale is SCALE and bias is BIAS
    shifted = acc + (BIAS.value / SCALE.value).reshape(1, 3, 1).astype(np.float32)
    np.testing.assert_allclose(value(stripped, shifted), value(root, acc), rtol=1e-4, atol=1e-5)
    twice = apply("add", root, ACC)
    assert split_bias(twice) == (twice, None, None)


def test_bias_leaves_silu(acc):
    x = apply("add", apply("mul", ACC, SCALE), BIAS)
    stripped, scale, _ = split_bias(apply("mul", x, apply("sigmoid", x)))
    assert scale is SCALE
    program, _, _ = linearize(stripped, 0)
    assert [step[0] for step in program.steps] == ["mul", "sigmoid", "mul"]


def test_output_scale_goes_to_the_leaves_and_clamps_into_the_store(acc):
    residual = apply("mul", tensor(0, Operand("tensor", "uint8", 3)), number(0.5))
    root = apply("max", apply("add", apply("mul", ACC, SCALE), residual), number(0.0))
    scaled, output = with_output(root, "uint8", 0.25, 10)
    assert (output.low, output.high, output.zero_point) == (0.0, 245.0, 10)
    program, _, _ = linearize(scaled, 1)
    assert [step[0] for step in program.steps] == ["mul", "fma"]
    other = np.full_like(acc, 7.0)
    np.testing.assert_allclose(
        value(scaled, acc, [other]), (acc * SCALE.value.reshape(1, 3, 1) + 3.5) * 4, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("order", ["relu6", "reversed"])
def test_clamps(order):
    low, high = (("max", 0.0), ("min", 6.0)) if order == "relu6" else (("min", 6.0), ("max", 0.0))
    root = apply(high[0], apply(low[0], ACC, number(low[1])), number(high[1]))
    assert split_clamp(root) == (ACC, 0.0, 6.0)


def test_contradictory_clamps_stay():
    root = apply("max", apply("min", ACC, number(1.0)), number(2.0))
    inner, low, high = split_clamp(root)
    assert (low, high) == (2.0, np.inf) and inner.op == "min"


def test_scale_over_scale_is_nothing():
    scale = np.float32(0.0123)
    root, output = with_output(apply("mul", ACC, number(scale)), "uint8", float(scale), 7)
    assert root is ACC and output.zero_point == 7


SCALES, ZEROS = np.array([0.5, 0.02, 0.1]), np.array([3, 0, 200])


@pytest.mark.parametrize("op", ["prelu", "max", "min", "relu6"])
def test_channels_in_scales_of_their_own(op, acc):
    """What with_output stores is quantize() per channel of the expression, up to the order of rounding."""
    root = apply("add", apply("mul", ACC, SCALE), BIAS)
    if op == "relu6":
        root = apply("min", apply("max", root, number(0.0)), number(6.0))
    else:
        root = apply(op, root, number(0.1))
    real = value(root, acc)
    root, output = with_output(root, "uint8", SCALES, ZEROS)
    assert (output.zero_point, output.low, output.high) == (0, 0.0, 255.0)
    stored = arithmetic.store(value(root, acc), output)
    expected = arithmetic.quantize(real, SCALES.reshape(1, 3, 1), ZEROS.reshape(1, 3, 1))
    assert np.abs(stored.astype(int) - expected).max() <= 1


def test_a_clamp_that_saturation_implies_is_dropped():
    root = apply("min", apply("max", apply("mul", ACC, SCALE), number(0.0)), number(6.0))
    root, output = with_output(root, "uint8", np.array([6.0, 3.0, 0.6]) / 255, np.zeros(3))
    assert root.op == "mul" and root.args[0] is ACC
    assert (output.low, output.high) == (0.0, 255.0)
    root = apply("min", apply("mul", ACC, SCALE), number(6.0))
    root, _ = with_output(root, "uint8", np.array([12.0, 3.0, 0.6]) / 255, np.zeros(3))
    assert root.op == "min"
