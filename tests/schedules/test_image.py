"""ImageRule: images of bytes to NHW4c, with and without borders, to the last bit."""

from dataclasses import replace

import numpy as np
import pytest

from tests.schedules.kernel_testing import CASCADELAKE, NATIVE, ZNVER4, assert_exact, run_kernel
from tvm_int8.schedules.cpu import Cpu
from tvm_int8.schedules.image import ImageRule
from tvm_int8.schedules.rule import Constants
from tvm_int8.specs import Elementwise, Operand, Output, Program, Tensor, Window2d

RULE = ImageRule()
BYTES = Output("uint8", 0, 0, 255)


def packed(channels, hw, n=1, zero_point=0, output=None):
    shape = (n, channels, *hw)
    output = output or Output("uint8", zero_point, -zero_point, 255 - zero_point)
    program = Program((Operand("tensor", "uint8", zero_point),))
    return Elementwise("image", (Tensor(shape, "uint8", 0),), Tensor(shape, "uint8", 4), program, output)


def window(channels, hw, target, start, n=1, pad_value=None):
    inputs, result = (Tensor((n, channels, *hw), "uint8", 0),), Tensor((n, channels, *target), "uint8", 4)
    return Window2d("pad", inputs, result, Program(()), BYTES, start, (1, 1), pad_value)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("hw", [(1, 1), (3, 5), (4, 15), (4, 16), (5, 17), (30, 31), (130, 140)])
def test_packing(channels, hw):
    assert_exact(RULE, packed(channels, hw, n=2))


WINDOWS = [
    ((7, 9), (7, 9), (0, 0)),
    ((7, 9), (9, 13), (-1, -3)),
    ((7, 30), (13, 36), (-3, -3)),
    ((20, 18), (25, 60), (-4, -20)),
    ((7, 9), (5, 4), (1, 3)),
    ((7, 20), (9, 17), (-1, 2)),
    ((7, 20), (6, 24), (2, -2)),
    ((4, 4), (3, 3), (4, 0)),
    ((4, 4), (3, 3), (0, -3)),
    ((4, 4), (3, 3), (0, 4)),
]


@pytest.mark.parametrize(("hw", "target", "start"), WINDOWS)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_borders(channels, hw, target, start):
    pad = np.array([124, 255, 0, 7], np.uint8)[:channels]
    assert_exact(RULE, window(channels, hw, target, start, n=2), Constants(pad=pad))
    assert_exact(RULE, window(channels, hw, target, start, n=2, pad_value=9))


@pytest.mark.parametrize("cpu", [CASCADELAKE, replace(NATIVE, threads=1)])
def test_cpus(cpu):
    assert_exact(RULE, packed(3, (140, 130)), cpu=cpu)
    assert_exact(RULE, window(3, (140, 130), (146, 136), (-3, -3)), Constants(pad=np.uint8([1, 2, 3])), cpu=cpu)


@pytest.mark.isa("avx2")
def test_256_bits():
    assert_exact(RULE, window(3, (14, 40), (16, 42), (-1, -1)), Constants(pad=np.uint8([1, 2, 3])),
                 cpu=Cpu("haswell", "avx2", 256, 16, threads=2))  # fmt: skip


def test_lanes_behind_the_last_channel_are_zero():
    spec = window(3, (5, 20), (7, 22), (-1, -1))
    kernel = RULE.build(spec, Constants(pad=np.uint8([1, 2, 3])), NATIVE)
    found = run_kernel(kernel, spec, [np.full((1, 3, 5, 20), 255, np.uint8)])
    assert not found[..., 3].any()


def test_what_the_rule_takes():
    spec = packed(3, (4, 4), zero_point=7)
    assert RULE.applies(spec, ZNVER4)
    assert not RULE.applies(packed(3, (4, 4), output=Output("uint8", 7, -7, 248)), ZNVER4)
    assert not RULE.applies(packed(3, (4, 4), output=Output("uint8", 0, 0, 200)), ZNVER4)
    assert RULE.applies(packed(3, (4, 4), output=Output("uint8")), ZNVER4)
