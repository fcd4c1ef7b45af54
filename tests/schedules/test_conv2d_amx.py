"""Conv2dAmxRule: what tiles cover, to the last bit."""

import re

import numpy as np
import pytest

from tests.schedules.kernel_testing import CASCADELAKE, SAPPHIRERAPIDS, assembly, assert_exact
from tests.schedules.test_conv2d import RELU_U8, constants_for, conv_spec
from tvm_int8.schedules.amx_geometry import Geometry, stacked_rows
from tvm_int8.schedules.conv2d_amx import Conv2dAmxRule
from tvm_int8.specs import Operand, Output

RULE = Conv2dAmxRule()

needs_amx = pytest.mark.isa("amx_int8", "avx512vnni")


class Everything(Conv2dAmxRule):
    """Also takes what is left to `vpdpbusd` for its speed."""

    def applies(self, spec, cpu):
        return True


def check(spec, knobs=None, seed=0):
    return assert_exact(Everything(), spec, constants_for(spec, seed), cpu=SAPPHIRERAPIDS, knobs=knobs, seed=seed)


@needs_amx
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (1, 2)])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (1, 7), (5, 5)])
@pytest.mark.parametrize("c", [3, 16, 40, 64, 128])
def test_kernels_strides_and_channels(c, kernel, strides):
    check(conv_spec(c=c, o=48, hw=(13, 17), kernel=kernel, strides=strides, block=4 if c == 3 else 16))


@needs_amx
@pytest.mark.parametrize("o", [1, 16, 24, 33, 64, 96])
@pytest.mark.parametrize("hw", [(2, 4), (7, 7), (14, 14), (5, 33), (28, 28), (20, 3)])
def test_tails_of_maps_and_channels(hw, o):
    check(conv_spec(c=64, o=o, hw=hw))
    check(conv_spec(c=64, o=o, hw=hw, kernel=(1, 1)))


@needs_amx
@pytest.mark.parametrize("strides", [1, 2, 3])
@pytest.mark.parametrize("kernel", [2, 3, 5, 7, 11])
@pytest.mark.parametrize("hw", [(33, 41), (16, 16), (20, 7)])
def test_images(hw, kernel, strides):
    check(conv_spec(n=2, c=3, o=40, hw=hw, kernel=(kernel, kernel), strides=(strides, strides), block=4))
    check(conv_spec(c=3, o=16, hw=hw, kernel=(kernel, 3), padding=(0, 2, 1, 0), strides=(1, strides), block=4))


def test_rows_of_images_are_stacked_where_that_saves_products():
    assert [stacked_rows(conv_spec(c=3, hw=(32, 32), kernel=(k, k), block=4)) for k in (1, 3, 7, 11)] == [1, 3, 2, 4]


@needs_amx
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(("c", "o", "groups"), [(64, 64, 2), (128, 128, 32), (24, 60, 3), (240, 60, 3), (96, 160, 4)])
def test_groups(c, o, groups, kernel):
    check(conv_spec(n=2, c=c, o=o, hw=(9, 9), kernel=(kernel, kernel), groups=groups, dilation=(1, 1)))
    check(conv_spec(c=c, o=o, hw=(9, 20), kernel=(kernel, kernel), groups=groups, strides=(2, 2)))


@needs_amx
@pytest.mark.parametrize("c", [16, 48, 64])
@pytest.mark.parametrize("dilation", [(2, 2), (1, 3), (6, 6)])
def test_dilation(dilation, c):
    reach = dilation
    check(conv_spec(c=c, o=32, hw=(15, 15), dilation=dilation, padding=(*reach, *reach)))


@needs_amx
@pytest.mark.parametrize("padding", [(0, 0, 0, 0), (0, 1, 2, 1), (3, 0, 0, 2)])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 2)])
def test_paddings(kernel, padding):
    check(conv_spec(c=80, o=32, hw=(9, 10), kernel=kernel, padding=padding, strides=(2, 1)))


@needs_amx
@pytest.mark.parametrize("order", ["pixels", "channels"])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("o", [32, 80])
def test_both_orders_of_loops(order, n, o):
    for chunk, panels in ((1, 1), (2, 2), (3, 1), (99, 99)):
        knobs = {"order": order, "chunk": chunk, "panels": panels}
        check(conv_spec(n=n, c=64, o=o, hw=(10, 11)), knobs)
        check(conv_spec(n=n, c=128, o=o, hw=(10, 10), kernel=(1, 1)), knobs)


@needs_amx
@pytest.mark.parametrize(("strip", "part"), [(1, 1), (2, 2), (3, 1), (4, 2), (2, 5)])
def test_strips_of_blocks_and_parts_of_panels(strip, part):
    for order, panels in (("pixels", 2), ("channels", 1)):
        knobs = {"order": order, "chunk": 5, "panels": panels, "strip": strip, "part": part}
        check(conv_spec(n=2, c=320, o=40, hw=(12, 20)), knobs)
        check(conv_spec(c=320, o=64, hw=(7, 7)), knobs)


@needs_amx
@pytest.mark.parametrize(
    "output", [RELU_U8, Output("uint8", 128, -128, 127), Output("int8", 0, -128, 127), Output("float32")]
)
def test_outputs_and_operands(output):
    operands = (Operand("tensor", "uint8", 7), Operand("vector"))
    steps = (("mul", "%0", "%1"), ("fma", "%2", 0.5, "%4"), ("mul", "%5", "%3"), ("max", "%6", 0.0))
    check(conv_spec(c=64, o=40, hw=(9, 9), output=output, operands=operands, steps=steps))


@needs_amx
def test_extremes():
    spec = conv_spec(c=512, o=32, hw=(7, 7), output=Output("float32"))
    constants = constants_for(spec)
    for value in (-128, 127):
        constants.weight[...] = value
        assert_exact(RULE, spec, constants, [np.full((1, 512, 7, 7), 255, np.uint8)], SAPPHIRERAPIDS)


def test_code_uses_tiles():
    spec = conv_spec(c=64, o=64, hw=(14, 14))
    text = assembly(RULE.build(spec, constants_for(spec), SAPPHIRERAPIDS), "sapphirerapids")
    for instruction in ("ldtilecfg", "tileloadd", "tdpbusd", "tilestored", "tilerelease", "syscall"):
        assert re.search(rf"\b{instruction}\b", text), instruction
    assert not re.search(r"\bvpdpbusd\b", text)


def covered(geometry: Geometry, pixels: int) -> list[int]:
    """How often every pixel of the output is computed."""
    counts = [0] * pixels
    for line in range(geometry.lines):
        for segment in geometry.segments:
            for i in range(segment.count):
                for run in segment.runs:
                    first = line * geometry.line_pixels + i * segment.pixel_step + run.pixel
                    for pixel in range(first, first + run.count):
                        counts[pixel] += 1
    return counts


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("hw", [(7, 7), (14, 14), (15, 40), (33, 9), (28, 28), (3, 70)])
def test_blocks_cover_every_pixel_once(hw, strides, kernel):
    spec = conv_spec(c=64, hw=hw, strides=(strides, strides), kernel=(kernel, kernel))
    pixels = spec.result.shape[2] * spec.result.shape[3]
    assert covered(Geometry.of(spec), pixels) == [1] * pixels


def test_small_maps_take_fewer_tiles_than_lines():
    assert sum(len(segment.tiles) for segment in Geometry.of(conv_spec(c=64, hw=(7, 7))).segments) == 4


def test_not_for_other_cpus_or_single_pixels():
    assert not RULE.applies(conv_spec(c=64), CASCADELAKE)
    assert not RULE.applies(conv_spec(c=64, hw=(1, 1), kernel=(1, 1)), SAPPHIRERAPIDS)


@pytest.mark.parametrize(
    ("c", "o", "kernel", "taken"),
    [(16, 96, 1, False), (32, 16, 1, False), (24, 144, 1, True), (32, 64, 1, True), (16, 16, 3, True)],
)
def test_not_for_very_few_products_per_output(c, o, kernel, taken):
    assert RULE.applies(conv_spec(c=c, o=o, hw=(28, 28), kernel=(kernel, kernel)), SAPPHIRERAPIDS) == taken


def test_products_are_counted_as_vpdpbusd_would_compute_them():
    """Channels in fours, and all that sixteen output channels of a grouped convolution read."""
    assert RULE.applies(conv_spec(c=1, o=64, hw=(96, 96), kernel=(5, 5), block=4), SAPPHIRERAPIDS)
    assert RULE.applies(conv_spec(c=128, o=128, hw=(28, 28), groups=32), SAPPHIRERAPIDS)
