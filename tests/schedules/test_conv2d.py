"""Conv2dRule: every shape of convolution, to the last bit."""

import re

import numpy as np
import pytest

from tests.schedules.kernel_testing import CASCADELAKE, NATIVE, ZNVER4, assembly, assert_exact, random_array
from tvm_int8.schedules.conv2d import Conv2dRule
from tvm_int8.schedules.cpu import Cpu
from tvm_int8.schedules.rule import Constants
from tvm_int8.specs import Conv2d, Operand, Output, Program, Tensor

RELU_U8 = Output("uint8", 0, 0, 255)


def conv_spec(
    n=1,
    c=16,
    o=16,
    hw=(8, 8),
    kernel=(3, 3),
    strides=(1, 1),
    padding=None,
    dilation=(1, 1),
    groups=1,
    dtype="uint8",
    block=16,
    output=RELU_U8,
    operands=(),
    steps=None,
    pad_value=3,
    transposed=False,
    output_padding=(0, 0),
):
    padding = padding if padding is not None else (kernel[0] // 2, kernel[1] // 2, kernel[0] // 2, kernel[1] // 2)
    reach = [dilation[i] * (kernel[i] - 1) + 1 for i in (0, 1)]
    before, after = padding[:2], padding[2:]
    if transposed:
        out = [(hw[i] - 1) * strides[i] + reach[i] - before[i] - after[i] + output_padding[i] for i in (0, 1)]
    else:
        out = [(hw[i] + before[i] + after[i] - reach[i]) // strides[i] + 1 for i in (0, 1)]
    result = Tensor((n, o, *out), output.dtype)
    data = Tensor((n, c, *hw), dtype, block)
    extra = tuple(
        Tensor(result.shape if op.kind == "tensor" else (n, o, 1, 1), op.dtype)
        for op in operands
        if op.kind in ("tensor", "vector")
    )
    program = Program(
        (Operand("acc", "int32" if dtype == "uint8" else dtype), Operand("channel"), *operands),
        steps or (("mul", "%0", "%1"),),
    )
    return Conv2d(
        "conv",
        (data, *extra),
        result,
        program,
        output,
        kernel=kernel,
        strides=strides,
        padding=padding,
        dilation=dilation,
        groups=groups,
        pad_value=pad_value if dtype == "uint8" else 0,
        transposed=transposed,
    )


def constants_for(spec, seed=0):
    rng = np.random.default_rng(seed)
    c, o, g = spec.inputs[0].shape[1], spec.result.shape[1], spec.groups
    shape = (c, o // g, *spec.kernel) if spec.transposed else (o, c // g, *spec.kernel)
    channels = tuple(rng.random(o).astype(np.float32) * 1e-3 for op in spec.program.operands if op.kind == "channel")
    if spec.inputs[0].dtype == "uint8":
        weight = random_array(Tensor(shape, "int8"), rng)
        return Constants(weight, rng.integers(-50000, 50000, o).astype(np.int32), channels)
    weight = rng.integers(-8, 8, shape).astype(np.float32)  # small integers: float32 sums are exact in any order
    return Constants(weight, rng.integers(-8, 8, o).astype(np.float32), channels)


def check(spec, cpu=NATIVE, knobs=None, **kw):
    inputs = None
    if spec.inputs[0].dtype == "float32":
        rng = np.random.default_rng(1)
        inputs = [rng.integers(-8, 8, t.shape).astype(np.float32) for t in spec.inputs]
    return assert_exact(Conv2dRule(), spec, constants_for(spec), inputs, cpu, knobs)


SHAPES = {
    "3x3": dict(),
    "1x1": dict(kernel=(1, 1)),
    "1x1 many pixels": dict(kernel=(1, 1), hw=(13, 11), c=32, o=64),
    "strided 1x1": dict(kernel=(1, 1), strides=(2, 2), hw=(9, 9), c=32),
    "channel tails": dict(c=17, o=40),
    "few channels": dict(c=5, o=3),
    "prime width": dict(hw=(5, 17), c=32, o=80),
    "7x7 image": dict(c=3, o=32, block=4, kernel=(7, 7), strides=(2, 2), hw=(29, 31)),
    "grey image": dict(c=1, o=16, block=4, kernel=(5, 5), hw=(12, 12)),
    "asymmetric padding": dict(padding=(0, 1, 2, 3)),
    "dilated": dict(dilation=(2, 3), padding=(2, 3, 2, 3), hw=(11, 12)),
    "rectangular": dict(kernel=(1, 7), padding=(0, 3, 0, 3), c=48, o=32),
    "groups of 32": dict(c=64, o=64, groups=2),
    "groups of 4": dict(c=64, o=64, groups=16),
    "groups of 3": dict(c=27, o=18, groups=9),
    "groups of 24": dict(c=48, o=96, groups=2),
    "depth multiplier": dict(c=8, o=24, groups=8),
    "batch": dict(n=3, c=32, o=48, hw=(5, 5)),
    "dense": dict(kernel=(1, 1), hw=(1, 1), c=100, o=1000, padding=(0, 0, 0, 0)),
    "dense batch": dict(kernel=(1, 1), hw=(1, 1), c=64, o=10, n=4, padding=(0, 0, 0, 0)),
    "whole map": dict(kernel=(6, 6), hw=(6, 6), c=32, o=64, padding=(0, 0, 0, 0)),
    "stride beyond kernel": dict(kernel=(1, 1), strides=(3, 3), hw=(8, 10)),
    "transposed 2x2": dict(transposed=True, kernel=(2, 2), strides=(2, 2), padding=(0, 0, 0, 0)),
    "transposed 3x3": dict(transposed=True, strides=(2, 2), padding=(1, 1, 1, 1), output_padding=(1, 1), c=24, o=20),
    "transposed 4x4": dict(transposed=True, kernel=(4, 4), strides=(2, 2), padding=(1, 1, 1, 1)),
    "transposed 5x2": dict(transposed=True, kernel=(5, 2), strides=(3, 3), padding=(2, 0, 1, 1)),
    "transposed groups": dict(transposed=True, kernel=(3, 3), strides=(2, 2), c=32, o=32, groups=2),
    "transposed dilated": dict(transposed=True, kernel=(3, 3), strides=(2, 2), dilation=(2, 2), padding=(1, 1, 1, 1)),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_shape(name, dtype):
    output = RELU_U8 if dtype == "uint8" else Output("float32")
    check(conv_spec(**SHAPES[name], dtype=dtype, output=output))


SKYLAKE = Cpu("skylake-avx512", "avx512bw", 512, 32)
HASWELL = Cpu("haswell", "avx2", 256, 16)


@pytest.mark.parametrize("cpu", [CASCADELAKE, SKYLAKE, HASWELL], ids=lambda c: c.name)
@pytest.mark.parametrize("name", ["3x3", "channel tails", "7x7 image", "groups of 3", "transposed 3x3"])
def test_other_cpus(name, cpu):
    check(conv_spec(**SHAPES[name]), cpu)


@pytest.mark.parametrize("knobs", [(1, 1), (3, 2), (8, 1), (14, 2), (5, 5)])
def test_knobs_do_not_change_the_result(knobs):
    check(conv_spec(c=32, o=80, hw=(7, 15)), knobs={"ow_tile": knobs[0], "oc_tile": knobs[1]})


def test_extremes_do_not_saturate():
    spec = conv_spec(c=64, o=16, output=Output("float32"))
    for x, w in ((255, -128), (255, 127), (0, 127)):
        constants = Constants(np.full((16, 64, 3, 3), w, np.int8), np.zeros(16, np.int32), (np.ones(16, np.float32),))
        inputs = [np.full((1, 64, 8, 8), x, np.uint8)]
        for cpu in (ZNVER4, SKYLAKE, HASWELL):
            assert_exact(Conv2dRule(), spec, constants, inputs, cpu)


@pytest.mark.parametrize(
    "output",
    [
        RELU_U8,
        Output("uint8", 128, -128, 127),
        Output("uint8", 7, 0, 100.5),
        Output("int8", -3, -125, 130),
        Output("float32"),
    ],
)
def test_residual_and_activation(output):
    operands = (Operand("tensor", "uint8", 12), Operand("vector", "float32"), Operand("channel"))
    steps = (
        ("mul", "%0", "%1"),
        ("fma", "%2", 0.37, "%5"),
        ("prelu", "%6", "%4"),
        ("sigmoid", "%7"),
        ("mul", "%8", "%3"),
        ("mul", "%9", 50.0),
    )
    check(conv_spec(c=32, o=40, hw=(6, 9), operands=operands, steps=steps, output=output, n=2))


def test_vnni_is_used_and_nothing_spills():
    spec = conv_spec(c=64, o=64, hw=(28, 28))
    text = assembly(Conv2dRule().build(spec, constants_for(spec), ZNVER4))
    assert text.count("vpdpbusd") >= 4 * 28
    spills = [
        line for line in text.splitlines() if "vmovdqu64" in line and "zmm" in line and "(%rsp)" in line.split(",")[-1]
    ]
    assert not spills


@pytest.mark.parametrize(
    "cpu, multiplies, absent",
    [
        (ZNVER4, r"vpdpbusd\t.*%zmm", r"vpmaddwd"),
        (SKYLAKE, r"vpmaddwd\t.*%zmm", r"vpdpbusd|%ymm16"),
        (Cpu("alderlake", "avxvnni", 256, 16), r"\{vex\}\tvpdpbusd\t.*%ymm", r"%zmm|%ymm1[6-9]"),
        (HASWELL, r"vpmaddwd\t.*%ymm", r"vpdpbusd|%zmm|%ymm1[6-9]"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_every_cpu_gets_its_own_instructions(cpu, multiplies, absent):
    spec = conv_spec(c=32, o=32, hw=(14, 14))
    text = assembly(Conv2dRule().build(spec, constants_for(spec), cpu), cpu.name)
    assert re.search(multiplies, text)
    assert not re.search(absent, text)
