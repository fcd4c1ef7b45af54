"""Pixels out of channels, to the last bit."""

import pytest

from tests.schedules.kernel_testing import CASCADELAKE, NATIVE, assert_exact
from tvm_int8.schedules.depth_to_space import DepthToSpaceRule
from tvm_int8.specs import DepthToSpace, Output, Program, Tensor

RULE = DepthToSpaceRule()


def check(order):
    """As Cascade Lake runs it: for Zen, LLVM shuffles bytes by SSE4a, which other CPUs do not have."""
    assert_exact(RULE, order, cpu=NATIVE)


def spec(channels, size, factor, adjacent, dtype="uint8", block=16, batch=2):
    height, width = size
    data = Tensor((batch, channels * factor**2, height, width), dtype)
    result = Tensor((batch, channels, height * factor, width * factor), dtype, block)
    return DepthToSpace("layer", (data,), result, Program(()), Output(dtype), factor, adjacent)


@pytest.mark.parametrize("channels", [1, 3, 16, 20, 64])
@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "float32"])
def test_packed_results(channels, factor, dtype):
    check(spec(channels, (5, 7), factor, True, dtype))
    if channels % 16 == 0:
        check(spec(channels, (5, 7), factor, False, dtype))


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("adjacent", [True, False])
@pytest.mark.parametrize("width", [5, 16, 37])
def test_plain_results(channels, factor, adjacent, width):
    for dtype in ("uint8", "float32"):
        check(spec(channels, (3, width), factor, adjacent, dtype, block=0))


def test_shares_of_threads():
    check(spec(32, (64, 64), 2, True, batch=1))
    check(spec(1, (200, 210), 3, True, "float32", block=0, batch=1))


def test_channels_that_straddle_blocks_are_refused():
    assert not RULE.applies(spec(20, (5, 7), 2, False), CASCADELAKE)
    assert not RULE.applies(spec(20, (5, 7), 2, True, block=0), CASCADELAKE)
