"""Spatial slices and padding, to the last bit."""

import pytest

from tests.schedules.kernel_testing import CASCADELAKE, NATIVE, assert_exact
from tvm_int8.schedules.window2d import Window2dRule
from tvm_int8.specs import Output, Program, Tensor, Window2d

RULE = Window2dRule()


def window(channels, source, target, start, step=(1, 1), dtype="uint8", block=16, pad_value=0, batch=2):
    inputs = (Tensor((batch, channels, *source), dtype, block),)
    result = Tensor((batch, channels, *target), dtype, block)
    return Window2d("layer", inputs, result, Program(()), Output(dtype), start, step, pad_value)


WINDOWS = [
    ((7, 9), (7, 9), (0, 0), (1, 1)),
    ((7, 9), (5, 4), (1, 3), (1, 1)),
    ((7, 9), (3, 4), (1, 0), (2, 2)),
    ((7, 9), (2, 3), (0, 1), (3, 3)),
    ((7, 9), (9, 13), (-1, -3), (1, 1)),
    ((7, 9), (6, 7), (-3, -1), (2, 2)),
    ((7, 9), (4, 4), (7, 0), (1, 1)),
    ((7, 9), (4, 4), (0, 9), (1, 1)),
    ((7, 9), (3, 3), (-3, -3), (1, 1)),
    ((1, 1), (3, 5), (-1, -2), (1, 1)),
    ((40, 70), (44, 75), (-2, -3), (1, 1)),
]


@pytest.mark.parametrize("source, target, start, step", WINDOWS)
@pytest.mark.parametrize("block", [0, 4, 16])
def test_windows(source, target, start, step, block):
    for dtype, value in (("uint8", 200), ("int8", -5), ("float32", -1.5)):
        channels = 3 if block == 4 else 20
        assert_exact(RULE, window(channels, source, target, start, step, dtype, block, value))


@pytest.mark.parametrize("channels", [1, 3, 8, 16, 17, 40, 64])
@pytest.mark.parametrize("cpu", [NATIVE, CASCADELAKE], ids=lambda cpu: cpu.name)
def test_channels(channels, cpu):
    assert_exact(RULE, window(channels, (13, 11), (15, 13), (-1, -1), pad_value=128), cpu=cpu)
    assert_exact(RULE, window(channels, (13, 11), (6, 5), (1, 1), (2, 2)), cpu=cpu)
