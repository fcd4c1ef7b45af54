"""DepthwiseConv2dRule: every shape, both bodies, to the last bit."""

import re
from dataclasses import replace

import numpy as np
import pytest

from tests.schedules.kernel_testing import CASCADELAKE, NATIVE, ZNVER4, assembly, assert_exact, random_array
from tvm_int8.schedules.cpu import Cpu
from tvm_int8.schedules.depthwise_conv2d import DepthwiseConv2dRule
from tvm_int8.schedules.depthwise_interleaved import can_interleave
from tvm_int8.schedules.rule import Constants
from tvm_int8.specs import Conv2d, Operand, Output, Program, Tensor

U8 = Output("uint8", 3, -3, 252)
ONE_THREAD = replace(NATIVE, threads=1)
RESIDUAL = Operand("tensor", "uint8", 7)


def spec_of(n=1, c=16, hw=(9, 11), kernel=3, strides=1, padding=None, dilation=1, dtype="uint8", output=U8,
            operands=(), steps=None):  # fmt: skip
    def pair(v):
        return v if isinstance(v, tuple) else (v, v)

    kernel, strides, dilation = pair(kernel), pair(strides), pair(dilation)
    reach = [dilation[i] * (kernel[i] - 1) + 1 for i in (0, 1)]
    padding = padding or (reach[0] // 2, reach[1] // 2) * 2
    out = [(hw[i] + padding[i] + padding[i + 2] - reach[i]) // strides[i] + 1 for i in (0, 1)]
    result = Tensor((n, c, *out), output.dtype)
    shapes = {"tensor": result.shape, "vector": (n, c, 1, 1), "map": (n, 1, *out)}
    extra = tuple(Tensor(shapes[o.kind], o.dtype) for o in operands if o.kind != "channel")
    program = Program((Operand("acc", "int32"), Operand("channel"), *operands), steps or (("mul", "%0", "%1"),))
    return Conv2d(
        "dw",
        (Tensor((n, c, *hw), dtype), *extra),
        result,
        program,
        output,
        kernel=kernel,
        strides=strides,
        padding=padding,
        dilation=dilation,
        groups=c,
        pad_value=5 if dtype == "uint8" else 0,
    )


def constants_for(spec):
    rng = np.random.default_rng(2)
    c = spec.result.shape[1]
    channels = tuple((rng.random(c) * 3e-3).astype(np.float32) for o in spec.program.operands if o.kind == "channel")
    if spec.inputs[0].dtype == "uint8":
        weight = random_array(Tensor((c, 1, *spec.kernel), "int8"), rng)
        return Constants(weight, rng.integers(-9000, 9000, c).astype(np.int32), channels)
    weight = rng.integers(-8, 8, (c, 1, *spec.kernel)).astype(np.float32)  # exact sums in any order
    return Constants(weight, rng.integers(-8, 8, c).astype(np.float32), channels)


def check(spec, cpu=NATIVE, inputs=None, **options):
    if spec.inputs[0].dtype == "float32":
        rng = np.random.default_rng(1)
        inputs = [rng.integers(-8, 8, t.shape).astype(t.dtype) for t in spec.inputs]
    return assert_exact(DepthwiseConv2dRule(), spec, constants_for(spec), inputs, cpu, **options)


SHAPES = {
    "3x3": dict(),
    "3x3 stride 2": dict(strides=2),
    "3x3 stride 2, even": dict(strides=2, hw=(14, 16), padding=(0, 0, 1, 1)),
    "3x3 stride 3": dict(strides=3, hw=(13, 17)),
    "strides differ": dict(strides=(1, 2), hw=(12, 13)),
    "strides differ the other way": dict(strides=(2, 1), hw=(12, 13)),
    "dilation 2": dict(dilation=2),
    "dilation 2, stride 2": dict(dilation=2, strides=2, hw=(17, 19)),
    "dilation 1x3": dict(dilation=(1, 3), strides=(1, 2), hw=(7, 20)),
    "1x1": dict(kernel=1),
    "1x1 stride 2": dict(kernel=1, strides=2),
    "2x2": dict(kernel=2, padding=(1, 1, 0, 0)),
    "5x5": dict(kernel=5),
    "5x5 stride 2": dict(kernel=5, strides=2, hw=(15, 15)),
    "7x7": dict(kernel=7, hw=(10, 9)),
    "1x7": dict(kernel=(1, 7)),
    "7x1": dict(kernel=(7, 1)),
    "13x11, rolled": dict(kernel=(13, 11), hw=(8, 9)),
    "asymmetric padding": dict(padding=(0, 2, 3, 1)),
    "more padding than kernel": dict(padding=(4, 4, 4, 4)),
    "no padding": dict(padding=(0, 0, 0, 0)),
    "right edge unread": dict(strides=3, hw=(12, 12), padding=(0, 0, 0, 0)),
    "3 channels": dict(c=3),
    "8 channels": dict(c=8),
    "17 channels": dict(c=17),
    "40 channels, two images": dict(c=40, n=2, hw=(5, 7)),
    "one pixel": dict(hw=(1, 1)),
    "narrow": dict(hw=(9, 3)),
    "narrow, stride 2": dict(hw=(9, 5), strides=2),
    "one row": dict(hw=(1, 23)),
    "7x7 map": dict(hw=(7, 7), c=64),
    "many rows": dict(hw=(113, 30)),
    "wide rows": dict(hw=(5, 1031)),
}


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape, dtype):
    output = U8 if dtype == "uint8" else Output("float32")
    check(spec_of(**SHAPES[shape], dtype=dtype, output=output))


@pytest.mark.parametrize("shape", ["3x3", "3x3 stride 2", "3x3 stride 3", "5x5", "one row", "many rows"])
@pytest.mark.parametrize("channels", [16, 40])
def test_padding_holds_every_channels_own_zero_point(shape, channels):
    spec = replace(spec_of(n=2, **SHAPES[shape] | {"c": channels}), pad_value=None)
    pad = np.random.default_rng(3).integers(0, 256, channels).astype(np.uint8)
    assert_exact(DepthwiseConv2dRule(), spec, replace(constants_for(spec), pad=pad))


@pytest.mark.parametrize("cpu", [CASCADELAKE, ONE_THREAD], ids=["cascadelake", "one thread"])
@pytest.mark.parametrize("strides", [1, 2, 3])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_cpus(cpu, strides, dtype):
    output = U8 if dtype == "uint8" else Output("float32")
    check(spec_of(c=40, n=2, hw=(15, 18), strides=strides, dtype=dtype, output=output), cpu)


@pytest.mark.parametrize("chunks, rows", [(1, 1), (1, 4), (2, 3), (3, 3), (11, 1), (4, 2)])
@pytest.mark.parametrize("strides", [1, 2])
def test_knobs(chunks, rows, strides):
    hw = (11, 13) if strides == 1 else (21, 25)
    check(spec_of(hw=hw, strides=strides), knobs={"chunks": chunks, "rows": rows})


@pytest.mark.parametrize("data, weight", [(255, -128), (255, 127), (0, -128), (0, 127)])
def test_extremes(data, weight):
    spec = spec_of(kernel=5, hw=(8, 8), output=Output("float32"))
    scale = np.ones(16, np.float32)
    constants = Constants(np.full((16, 1, 5, 5), weight, np.int8), np.full(16, -7, np.int32), (scale,))
    assert_exact(DepthwiseConv2dRule(), spec, constants, [np.full((1, 16, 8, 8), data, np.uint8)])


PROGRAMS = {
    "residual": ((RESIDUAL,), (("mul", "%2", 0.3), ("fma", "%0", "%1", "%3"), ("max", "%4", 0.0))),
    "float residual": ((Operand("tensor"),), (("fma", "%0", "%1", "%2"),)),
    "two residuals, bias": (
        (RESIDUAL, Operand("channel"), Operand("tensor", "uint8")),
        (("fma", "%0", "%1", "%3"), ("add", "%5", "%2"), ("sub", "%6", "%4")),
    ),
    "gate": ((Operand("vector"),), (("mul", "%0", "%1"), ("mul", "%3", "%2"))),
    "u8 gate": ((Operand("vector", "uint8", 9),), (("mul", "%0", "%1"), ("mul", "%3", "%2"))),
    "map": ((Operand("map"),), (("mul", "%0", "%1"), ("mul", "%3", "%2"))),
    "hard swish": (
        (),
        (("mul", "%0", "%1"), ("fma", "%2", 0.05, 0.5), ("max", "%3", 0.0), ("min", "%4", 1.0), ("mul", "%2", "%5")),
    ),
    "sigmoid": ((), (("mul", "%0", "%1"), ("sigmoid", "%2"), ("mul", "%2", "%3"))),
}
OUTPUTS = {
    "u8": U8,
    "relu": Output("uint8", 0, 0, 255),
    "relu6": Output("uint8", 10, 0, 60.4),
    "f32": Output("float32"),
    "clipped f32": Output("float32", 0, -1.5, 2.0),
    "s8": Output("int8", -5, -123, 132),
}


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_programs(program, output):
    operands, steps = PROGRAMS[program]
    check(spec_of(n=2, c=24, hw=(5, 6), operands=operands, steps=steps, output=OUTPUTS[output]))


def test_conversion_overflow_saturates():
    spec = spec_of(output=Output("uint8", 3, -3, 252))
    scale = np.resize(np.float32([1e6, -1e6]), 16)
    constants = Constants(np.full((16, 1, 3, 3), 127, np.int8), None, (scale,))
    assert_exact(DepthwiseConv2dRule(), spec, constants)


@pytest.mark.isa("avx512f")
def test_plain_body_without_vnni():
    check(spec_of(c=20, strides=2), Cpu("skylake-avx512", "none", 512, 32))
    check(spec_of(c=20, dilation=2), Cpu("haswell", "none", 256, 16))


@pytest.mark.parametrize("strides, gathers", [(1, 0), (2, 3)])
def test_instructions(strides, gathers):
    """Per input row eight unpacks (and a gather per tap), per output row twelve dot products; nothing spilled."""
    spec, cpu = spec_of(c=64, hw=(28, 28), strides=strides), replace(ZNVER4, threads=1)
    kernel = DepthwiseConv2dRule().build(
        spec, constants_for(spec), cpu, {"body": "interleaved", "chunks": 1, "rows": 7}
    )
    assert can_interleave(spec, cpu)
    text, rows_in = assembly(kernel), 6 * strides + 3

    def count(name):
        return len(re.findall(rf"\t{name}\t", text))

    assert count("vpdpbusd") == 7 * 12
    assert sum(count(f"vpunpck{half}{unit}") for half in "lh" for unit in ("bw", "wd")) == 8 * rows_in
    assert count("vshufi64x2") == gathers * rows_in
    assert count("vpackssdw") == 14
    assert count("vpackuswb") == 7


def test_what_is_not_ours():
    spec = spec_of()
    rule = DepthwiseConv2dRule()
    assert rule.applies(spec, ZNVER4)
    assert not rule.applies(spec_of(dtype="int8"), ZNVER4)
    dense = Conv2d("c", spec.inputs, spec.result, spec.program, spec.output, kernel=(3, 3), padding=(1, 1, 1, 1))
    assert not rule.applies(dense, ZNVER4)
