"""Pool2dRule: windows, borders, programs and whole maps, to the last bit."""

import re
from dataclasses import replace

import numpy as np
import pytest

from tests.schedules.kernel_testing import CASCADELAKE, NATIVE, assembly, assert_exact
from tvm_int8.reference.pool2d import accumulate, counts
from tvm_int8.schedules.pool2d import Pool2dRule, byte_range
from tvm_int8.schedules.rule import Constants
from tvm_int8.specs import Operand, Output, Pool2d, Program, Tensor

ONE_THREAD = replace(NATIVE, threads=1)
IDENTITY = Program((Operand("acc", "int32"),))
SAME = Output("uint8", 7, -7, 248)


def spec_of(mode="max", n=1, c=16, hw=(9, 11), kernel=3, strides=1, padding=None, dilation=1, dtype="uint8",
            grow=(0, 0), include=False, output=None, program=IDENTITY):  # fmt: skip
    def pair(v):
        return v if isinstance(v, tuple) else (v, v)

    kernel, strides, dilation = pair(kernel), pair(strides), pair(dilation)
    reach = [dilation[i] * (kernel[i] - 1) + 1 for i in (0, 1)]
    padding = padding if padding is not None else (kernel[0] // 2, kernel[1] // 2) * 2
    out = [(hw[i] + padding[i] + padding[i + 2] - reach[i]) // strides[i] + 1 + grow[i] for i in (0, 1)]
    output = output or (SAME if dtype == "uint8" else Output("float32"))
    result = Tensor((n, c, *out), output.dtype)
    shapes = {"tensor": result.shape, "vector": (n, c, 1, 1), "map": (n, 1, *out)}
    extra = tuple(Tensor(shapes[o.kind], o.dtype) for o in program.operands if o.kind in shapes)
    return Pool2d("pool", (Tensor((n, c, *hw), dtype), *extra), result, program, output, mode, kernel, strides, padding,
                  dilation, include, 7 if dtype == "uint8" else 0)  # fmt: skip


def check(spec, cpu=NATIVE, inputs=None):
    rng = np.random.default_rng(4)
    named = [o for o in spec.program.operands if o.kind == "channel"]
    channels = tuple(rng.standard_normal(spec.result.shape[1]).astype(np.float32) for _ in named)
    if spec.inputs[0].dtype == "float32" and inputs is None:
        inputs = [rng.integers(-8, 8, t.shape).astype(t.dtype) for t in spec.inputs]  # sums exact in any order
    return assert_exact(Pool2dRule(), spec, Constants(channels=channels), inputs, cpu)


SHAPES = {
    "1": dict(kernel=1),
    "1 stride 2": dict(kernel=1, strides=2),
    "2 stride 2": dict(kernel=2, strides=2, padding=(0, 0, 0, 0)),
    "2 stride 2, ceil": dict(kernel=2, strides=2, padding=(0, 0, 0, 0), grow=(1, 1)),
    "3": dict(),
    "3 stride 2": dict(strides=2),
    "3 stride 2, ceil": dict(strides=2, hw=(12, 14), padding=(0, 0, 0, 0), grow=(1, 1)),
    "3 stride 2, ceil, padded": dict(strides=2, hw=(12, 14), padding=(1, 1, 1, 1), grow=(1, 1)),
    "3 stride 2, end padding": dict(strides=2, hw=(12, 14), padding=(0, 0, 1, 1)),
    "3 stride 3": dict(strides=3, hw=(14, 13)),
    "5": dict(kernel=5, hw=(7, 8)),
    "5 stride 3": dict(kernel=5, strides=3, hw=(17, 17), padding=(0, 0, 0, 0)),
    "7 stride 2": dict(kernel=7, strides=2, hw=(15, 21)),
    "1x5": dict(kernel=(1, 5)),
    "5x1, strides differ": dict(kernel=(5, 1), strides=(1, 2)),
    "asymmetric": dict(padding=(0, 2, 1, 1), strides=(2, 1)),
    "13, window beyond the map": dict(kernel=13, hw=(8, 9)),
    "19, rolled": dict(kernel=19, hw=(23, 24)),
    "odd, no padding": dict(hw=(13, 15), padding=(0, 0, 0, 0)),
    "unread rows": dict(hw=(14, 14), strides=3, padding=(0, 0, 0, 0)),
    "narrow": dict(hw=(9, 3)),
    "narrow, stride 2": dict(hw=(9, 5), strides=2),
    "one row": dict(hw=(1, 20)),
    "1 channel": dict(c=1),
    "3 channels": dict(c=3),
    "40 channels, two images": dict(c=40, n=2, strides=2),
    "large": dict(c=32, hw=(57, 40), strides=2),
}


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("mode", ["max", "avg", "avg with padding"])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape, mode, dtype):
    check(spec_of(mode[:3], **SHAPES[shape], dtype=dtype, include="padding" in mode))


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("dilation, strides", [(2, 1), (2, 2), ((3, 1), (1, 2)), (2, 3)])
def test_dilation(dilation, strides, dtype):
    check(spec_of(dilation=dilation, strides=strides, hw=(13, 14), dtype=dtype))
    check(spec_of(dilation=dilation, strides=strides, hw=(13, 14), dtype=dtype, padding=(2, 1, 1, 2)))


@pytest.mark.parametrize("cpu", [CASCADELAKE, ONE_THREAD], ids=["cascadelake", "one thread"])
@pytest.mark.parametrize("mode", ["max", "avg"])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("strides", [1, 2])
def test_cpus(cpu, mode, dtype, strides):
    check(spec_of(mode, c=40, n=2, hw=(30, 31), dtype=dtype, strides=strides), cpu)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("mode", ["max", "avg"])
@pytest.mark.parametrize("hw", [(1, 1), (1, 3), (7, 7), (8, 8), (4, 5), (33, 35), (113, 114)])
def test_whole_map(hw, mode, dtype):
    check(spec_of(mode, n=2, c=24, hw=hw, kernel=hw, padding=(0, 0, 0, 0), dtype=dtype))


@pytest.mark.parametrize("mode", ["max", "avg"])
@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("kernel", [(3, 3), (16, 8), (17, 8), (16, 16), (17, 16), (40, 40)])
def test_extremes(kernel, mode, value):
    hw = (max(kernel[0] - 1, 4), kernel[1] + 3)
    spec = spec_of(mode, hw=hw, kernel=kernel, output=Output("float32"))
    check(spec, inputs=[np.full(spec.inputs[0].shape, value, np.uint8)])
    spec = spec_of(mode, hw=kernel, kernel=kernel, padding=(0, 0, 0, 0), output=Output("float32"))
    check(spec, inputs=[np.full(spec.inputs[0].shape, value, np.uint8)])


PROGRAMS = {
    "scale": ((Operand("channel"),), (("mul", "%0", "%1"),)),
    "added": ((Operand("tensor", "uint8", 3),), (("add", "%0", "%1"),)),
    "product, sum": (
        (Operand("channel"), Operand("tensor", "uint8")),
        (("fma", "%0", "%1", "%2"), ("sub", "%3", "%0")),
    ),
    "gate": ((Operand("vector"), Operand("map")), (("mul", "%0", "%1"), ("mul", "%3", "%2"))),
    "sigmoid": ((), (("sigmoid", "%0"), ("fma", "%1", 9.0, "%0"))),
}


@pytest.mark.parametrize(
    "output", [SAME, Output("uint8", 30, -30, 225), Output("float32"), Output("float32", 0, -1.0, 6.0)]
)
@pytest.mark.parametrize("mode", ["max", "avg"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_programs(program, mode, output):
    operands, steps = PROGRAMS[program]
    for kernel in (3, (6, 7)):
        padding = (1, 1, 1, 1) if kernel == 3 else (0, 0, 0, 0)
        check(spec_of(mode, n=2, c=20, hw=(6, 7), kernel=kernel, padding=padding, output=output,
                      program=Program((Operand("acc", "int32"), *operands), steps)))  # fmt: skip


@pytest.mark.parametrize("low, high", [(-7, 248), (0, 248), (0, 60.4), (-3.5, 12.5), (-300, 900), (-np.inf, np.inf)])
def test_clamps_stay_bytes(low, high):
    spec = spec_of(output=Output("uint8", 7, low, high))
    assert byte_range(spec) is not None
    assert "cvt" not in re.sub(r"\.\w+", "", assembly(check(spec)))


def test_what_needs_a_program():
    assert byte_range(spec_of()) == (0, 255)
    assert byte_range(spec_of(output=Output("uint8", 7, 0, 60.4))) == (7, 67)
    assert byte_range(spec_of(output=Output("uint8", 6, -6, 249))) is None
    assert byte_range(spec_of(mode="avg")) is None
    assert byte_range(spec_of(output=Output("float32"))) is None
    assert byte_range(spec_of(program=Program((Operand("acc"),), (("mul", "%0", 0.5),)))) is None


def test_bytes_are_compared_sixty_four_at_a_time():
    spec = spec_of(c=64, hw=(56, 56), strides=2)
    text = assembly(Pool2dRule().build(spec, Constants(), ONE_THREAD))
    compares = re.findall(r"\tvpmaxub\t[^\n]*", text)
    assert compares
    assert all("%zmm" in line for line in compares)
    assert "vshufi64x2" in text


def test_counts():
    """What contributes: by hand, for a window of 3, stride 2, ceil mode over five elements with padding 1."""
    spec = spec_of("avg", hw=(5, 6), strides=2, padding=(1, 1, 1, 1), grow=(0, 1))
    assert counts(spec, 0).tolist() == [2, 3, 2]
    assert counts(spec, 1).tolist() == [2, 3, 3, 1]
    spec = spec_of("avg", hw=(5, 6), strides=2, padding=(1, 1, 1, 1), grow=(0, 1), include=True)
    assert counts(spec, 0).tolist() == [3, 3, 3]
    assert counts(spec, 1).tolist() == [3, 3, 3, 2]
    ones = np.full(spec.inputs[0].shape, 8, np.uint8)  # zero point 7: real ones
    found = accumulate(spec, ones)[0, 0]
    assert np.array_equal(found[0], np.float32([4, 6, 6, 2]) * (np.float32(1) / np.float32([9, 9, 9, 6])))
