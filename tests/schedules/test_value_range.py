"""Value ranges: never narrower than what a kernel computes, and clamps go only where they cannot act."""

import numpy as np
import pytest

from tests.schedules.kernel_testing import CASCADELAKE, assembly, random_array
from tests.schedules.test_conv2d import constants_for, conv_spec
from tvm_int8.reference.conv2d import accumulate
from tvm_int8.schedules.conv2d import Conv2dRule
from tvm_int8.schedules.rule import Constants
from tvm_int8.schedules.value_range import accumulator_range, fits_int32
from tvm_int8.specs import Operand, Output, Program, Tensor


@pytest.mark.parametrize("options", [{}, {"groups": 4}, {"transposed": True}, {"transposed": True, "groups": 2}])
def test_accumulators_lie_within_their_range(options, rng):
    spec = conv_spec(c=16, o=24, hw=(5, 5), pad_value=0, **options)
    constants = constants_for(spec)
    low, high = accumulator_range(spec, constants)
    assert low.shape == high.shape == (24,)
    for data in (random_array(Tensor((1, 16, 5, 5), "uint8"), rng), np.full((1, 16, 5, 5), 255, np.uint8)):
        found = accumulate(spec, data, constants)
        assert (found.min((0, 2, 3)) >= low).all() and (found.max((0, 2, 3)) <= high).all()


def test_the_range_is_reached():
    spec = conv_spec(c=16, o=16, hw=(3, 3), padding=(0, 0, 0, 0))
    constants = Constants(np.full((16, 16, 3, 3), 2, np.int8), np.arange(16, dtype=np.int32))
    low, high = accumulator_range(spec, constants)
    data = np.full((1, 16, 3, 3), 255, np.uint8)
    np.testing.assert_array_equal(accumulate(spec, data, constants).ravel(), high)
    np.testing.assert_array_equal(low, np.arange(16))


ACC, CHANNEL, TENSOR = Operand("acc", "int32"), Operand("channel"), Operand("tensor", "uint8", 7)
CASES = {
    "scale": ((ACC, CHANNEL), (("mul", "%0", "%1"),), True),
    "residual": ((ACC, CHANNEL, TENSOR), (("mul", "%2", 0.5), ("fma", "%0", "%1", "%3")), True),
    "silu": ((ACC, CHANNEL), (("mul", "%0", "%1"), ("sigmoid", "%2"), ("mul", "%2", "%3")), True),
    "prelu": ((ACC, CHANNEL), (("mul", "%0", "%1"), ("prelu", "%2", -4.0)), True),
    "too large": ((ACC, CHANNEL), (("mul", "%0", "%1"), ("mul", "%2", 1e7)), False),
    "clamped": ((ACC, CHANNEL), (("mul", "%0", 1e7), ("min", "%2", 9.0), ("max", "%3", 0.0)), True),
    "quotient": ((ACC, CHANNEL), (("div", "%0", "%1"),), False),
    "float tensor": ((ACC, Operand("tensor")), (("add", "%0", "%1"),), False),
}


@pytest.mark.parametrize("case", CASES)
def test_programs(case):
    operands, steps, fits = CASES[case]
    constants = Constants(channels=(np.linspace(1e-3, 1, 8, dtype=np.float32),))
    accumulator = np.full(8, -1e6), np.full(8, 1e6)
    assert fits_int32(Program(operands, steps), constants, accumulator) == fits


def test_accumulators_that_may_overflow_fit_nothing():
    program = Program((ACC,), (("mul", "%0", 1e-6),))
    assert not fits_int32(program, Constants(), (np.array([-3e9]), np.array([0.0])))


@pytest.mark.parametrize(("output", "scale", "clamps"), [
    (Output("uint8", 3, -3, 252), 1e-3, False),
    (Output("uint8", 3, -3, 100), 1e-3, True),
    (Output("uint8", 3, -3, 252), 1e5, True),
])  # fmt: skip
def test_clamps_stay_where_they_act(output, scale, clamps):
    spec = conv_spec(c=16, o=16, hw=(4, 4), kernel=(1, 1), output=output)
    constants = constants_for(spec)
    constants = Constants(constants.weight, constants.bias, (np.full(16, scale, np.float32),))
    assert ("vminps" in assembly(Conv2dRule().build(spec, constants, CASCADELAKE), "cascadelake")) == clamps
