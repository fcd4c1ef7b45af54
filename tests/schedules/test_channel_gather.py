"""Concatenation, split, slice and shuffle of channels, to the last bit, with and without a change of scale."""

import itertools

import numpy as np
import pytest

from tests.schedules.kernel_testing import CASCADELAKE, NATIVE, assert_exact
from tvm_int8.schedules.channel_gather import ChannelGatherRule
from tvm_int8.specs import NOTHING, ChannelGather, Output, Program, Tensor

RULE = ChannelGatherRule()
ZERO_POINT = {"uint8": 11, "int8": -4, "float32": 0}


def gather(channels, source, dtype="uint8", hw=(5, 7), scales=None, zero_points=None, block=16, batch=2, output=None):
    inputs = tuple(Tensor((batch, c, *hw), dtype, block) for c in channels)
    output = output or Output(dtype, ZERO_POINT[dtype])
    return ChannelGather(
        "layer",
        inputs,
        Tensor((batch, len(source), *hw), dtype, block),
        Program(()),
        output,
        tuple(source),
        tuple(scales or [1.0] * len(channels)),
        tuple(zero_points or [output.zero_point] * len(channels)),
    )


def concat(channels, **options):
    source = [(i, c) for i, count in enumerate(channels) for c in range(count)]
    return gather(channels, source, **options)


def shuffled(channels, groups, **options):
    order = np.arange(channels).reshape(groups, -1).T.ravel()
    return gather((channels,), [(0, int(c)) for c in order], **options)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "float32"])
@pytest.mark.parametrize("channels", [(16, 32), (64, 16, 16), (8, 8), (17, 40), (40, 3, 1, 8), (1,), (24, 24)], ids=str)
def test_concat(dtype, channels):
    assert_exact(RULE, concat(channels, dtype=dtype))


@pytest.mark.parametrize("block", [16, 0])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("channels", [(16, 32), (17, 40, 8)], ids=str)
def test_requantising_concat(dtype, channels, block):
    zero_points = [3, ZERO_POINT[dtype], 0][: len(channels)]
    for scales in ([0.37, 1.0, 2.1], [1.0, 1.0, 1.0]):
        order = concat(channels, dtype=dtype, scales=scales[: len(channels)], zero_points=zero_points, block=block)
        assert_exact(RULE, order)


@pytest.mark.parametrize("block", [16, 0])
@pytest.mark.parametrize("begin, end", [(0, 16), (16, 48), (5, 6), (3, 40), (32, 64), (9, 26)])
def test_slice(begin, end, block):
    for dtype in ("uint8", "float32"):
        source = [(0, c) for c in range(begin, end)]
        assert_exact(RULE, gather((64,), source, dtype=dtype, block=block))
        assert_exact(RULE, gather((64,), source[::2], dtype=dtype, block=block))


@pytest.mark.parametrize("channels, groups", [(64, 2), (48, 3), (116, 2), (40, 4), (128, 8), (272, 17)])
def test_shuffle(channels, groups):
    for dtype in ("uint8", "float32"):
        assert_exact(RULE, shuffled(channels, groups, dtype=dtype))
    assert_exact(RULE, shuffled(channels, groups, scales=[0.4], zero_points=[7]))


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_any_permutation_of_two_inputs(dtype):
    rng = np.random.default_rng(0)
    source = rng.permutation(list(itertools.product(range(2), range(40)))).tolist()
    source = [tuple(s) for s in source]
    assert_exact(RULE, gather((40, 40), source, dtype=dtype))
    assert_exact(RULE, gather((40, 40), source, dtype=dtype, block=0))
    if dtype == "uint8":
        assert_exact(RULE, gather((40, 40), source, scales=[0.5, 1.5], zero_points=[0, 128]))


@pytest.mark.parametrize("hw", [(1, 1), (1, 3), (2, 2), (56, 56), (33, 31)])
@pytest.mark.parametrize("cpu", [NATIVE, CASCADELAKE], ids=lambda cpu: cpu.name)
def test_sizes(hw, cpu):
    for block in (16, 0):
        assert_exact(RULE, concat((64, 32, 9), hw=hw, block=block), cpu=cpu)
        assert_exact(
            RULE, concat((64, 24, 9), hw=hw, block=block, scales=[0.5, 1.0, 3.0], zero_points=[0, 11, 255]), cpu=cpu
        )
    assert_exact(RULE, shuffled(96, 3, hw=hw), cpu=cpu)


def test_clamp_narrower_than_the_dtype_applies_to_copies():
    for block in (16, 0):
        assert_exact(RULE, concat((16, 24), block=block, output=Output("uint8", 11, 0.0, 100.0)))
        assert_exact(RULE, concat((16, 24), block=block, dtype="float32", output=Output("float32", 0, 0.0, 6.0)))


@pytest.mark.parametrize("block", [16, 0])
@pytest.mark.parametrize("dtype, scale", [("uint8", 1.0), ("uint8", 0.7), ("float32", 1.0)])
@pytest.mark.parametrize("before, channels, behind", [(8, 16, 8), (16, 32, 16), (3, 5, 0), (0, 20, 44)])
def test_zeros_around_the_channels(before, channels, behind, dtype, scale, block):
    source = [NOTHING] * before + [(0, c) for c in range(channels)] + [NOTHING] * behind
    for zero_point in (ZERO_POINT[dtype], 5):
        zero_points = [zero_point if dtype != "float32" else 0]
        assert_exact(
            RULE, gather((channels,), source, dtype=dtype, scales=[scale], zero_points=zero_points, block=block)
        )


def test_zeros_between_inputs_of_different_scales():
    source = [(0, 1), NOTHING, (1, 2), NOTHING, (0, 0)]
    assert_exact(RULE, gather((4, 4), source, scales=[0.5, 2.0], zero_points=[9, 1]))
