"""Element-wise kernels, to the last bit: operand kinds, layouts, channel and pixel tails, saturation."""

import math

import numpy as np
import pytest

from tests.schedules.kernel_testing import CASCADELAKE, NATIVE, ZNVER4, assembly, assert_exact, random_array, run_kernel
from tvm_int8.schedules.elementwise import ElementwiseRule
from tvm_int8.schedules.rule import Constants
from tvm_int8.specs import Elementwise, Operand, Output, Program, Tensor

RULE = ElementwiseRule()
CHANNELS = [1, 3, 8, 16, 17, 40, 64]
U8 = Output("uint8", 7, -7, 248)
RELU = Output("uint8", 7, 0, 248)
S8 = Output("int8", -3, -125, 130)
F32 = Output("float32")
ADD = Program(
    (Operand("tensor", "uint8", 3), Operand("tensor", "uint8", 128)), (("mul", "%1", 0.6), ("fma", "%0", 0.7, "%2"))
)
SCALE_SHIFT_RELU = Program(
    (Operand("tensor", "uint8", 5), Operand("channel"), Operand("channel")),
    (("fma", "%0", "%1", "%2"), ("max", "%3", 0.0)),
)
ALL_KINDS = Program(
    (
        Operand("tensor", "uint8", 5),
        Operand("channel"),
        Operand("vector", "uint8", 9),
        Operand("map", "float32"),
        Operand("tensor", "uint8", 1),
    ),
    (("fma", "%0", "%1", "%3"), ("mul", "%2", 0.01), ("mul", "%4", 0.1), ("fma", "%5", "%6", "%7")),
)
AFFINE = Program((Operand("tensor", "float32"), Operand("channel")), (("fma", "%0", "%1", 0.5),))


def order(program, shape, output, block=16, out_block=16, vector_block=16, map_block=16):
    n, c, h, w = shape
    shapes = {
        "tensor": (shape, block),
        "vector": ((n, c, 1, 1), vector_block),
        "map": ((n, 1, h, w), map_block),
    }
    inputs = [Tensor(shapes[o.kind][0], o.dtype, shapes[o.kind][1]) for o in program.operands if o.kind != "channel"]
    return Elementwise("layer", tuple(inputs), Tensor(shape, output.dtype, out_block), program, output)


def constants(program, channels, seed=0):
    rng = np.random.default_rng(seed)
    count = sum(o.kind == "channel" for o in program.operands)
    return Constants(channels=[rng.standard_normal(channels).astype(np.float32) for _ in range(count)])


def check(program, shape, output, cpu=NATIVE, **blocks):
    return assert_exact(RULE, order(program, shape, output, **blocks), constants(program, shape[1]), cpu=cpu)


def retyped(program, dtype):
    """The program with its tensors in another dtype."""
    operands = tuple(
        Operand(o.kind, dtype, o.zero_point if dtype == "uint8" else 0) if o.kind == "tensor" else o
        for o in program.operands
    )
    return Program(operands, program.steps)


@pytest.mark.parametrize("channels", CHANNELS)
def test_packed_channels(channels):
    shape = (2, channels, 5, 7)
    check(ADD, shape, U8)
    check(ALL_KINDS, shape, U8)
    check(AFFINE, shape, F32)


@pytest.mark.parametrize("output", [U8, RELU, S8, F32], ids=["u8", "relu", "s8", "f32"])
@pytest.mark.parametrize("program", [ADD, SCALE_SHIFT_RELU, ALL_KINDS, AFFINE], ids=["add", "bn", "all", "affine"])
def test_packed_outputs(program, output):
    check(program, (2, 40, 5, 7), output)


@pytest.mark.parametrize("shape", [(1, 64, 56, 56), (3, 40, 33, 31), (1, 16, 1, 3), (2, 17, 1, 1)])
@pytest.mark.parametrize("cpu", [NATIVE, CASCADELAKE], ids=lambda cpu: cpu.name)
def test_shapes_and_cpus(shape, cpu):
    for program in (ADD, SCALE_SHIFT_RELU, ALL_KINDS):
        check(program, shape, U8, cpu)


@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (2, 40, 1, 1), (2, 1, 8, 20), (2, 17, 3, 5), (1, 64, 4, 4)])
@pytest.mark.parametrize("blocks", [(0, 16), (16, 0), (0, 0)], ids=["pack", "unpack", "plain"])
@pytest.mark.parametrize("dtypes", ["f32-u8", "u8-f32", "u8-u8", "f32-f32"])
def test_layouts(shape, blocks, dtypes):
    source, target = dtypes.split("-")
    output = U8 if target == "u8" else F32
    dtype = "uint8" if source == "u8" else "float32"
    map_block = 0 if blocks == (0, 0) else 16
    for program in (AFFINE, ALL_KINDS):
        check(retyped(program, dtype), shape, output, block=blocks[0], out_block=blocks[1], map_block=map_block)


def test_pack_and_unpack_with_relaid_tensors_only():
    for blocks in ((0, 16), (16, 0), (0, 0)):
        check(ADD, (2, 17, 7, 11), U8, block=blocks[0], out_block=blocks[1])


@pytest.mark.parametrize("blocks", [(0, 16), (16, 0), (0, 0)])
def test_plain_operands(blocks):
    for dtype, output in (("float32", U8), ("uint8", F32)):
        program = retyped(ALL_KINDS, dtype)
        check(program, (2, 40, 9, 5), output, block=blocks[0], out_block=blocks[1], vector_block=0, map_block=0)


def test_large_layouts():
    for blocks in ((0, 16), (16, 0)):
        for dtype, output in (("float32", U8), ("uint8", F32)):
            check(retyped(AFFINE, dtype), (2, 40, 45, 47), output, block=blocks[0], out_block=blocks[1])


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("hw", [(1, 1), (61, 67)])
@pytest.mark.parametrize("output", [U8, S8, F32], ids=["u8", "s8", "f32"])
def test_image(channels, hw, output):
    program = Program((Operand("tensor", "float32"),), (("mul", "%0", 20.0),))
    for p in (program, AFFINE):
        check(p, (2, channels, *hw), output, block=0, out_block=4)


def test_image_padding_is_real_zero():
    program = Program((Operand("tensor", "float32"),), (("mul", "%0", 20.0),))
    for output, zero in ((U8, 7), (F32, 0)):
        spec = order(program, (1, 3, 9, 7), output, block=0, out_block=4)
        inputs = [random_array(spec.inputs[0], np.random.default_rng(0))]
        out = run_kernel(RULE.build(spec, Constants(), NATIVE), spec, inputs)
        assert (out[..., 3] == zero).all()


@pytest.mark.parametrize(
    "steps",
    [
        (("sigmoid", "%0"),),
        (("mul", "%0", 0.05), ("sigmoid", "%1"), ("mul", "%1", "%2"), ("mul", "%3", 30.0)),
        (("fma", "%0", 0.0083, 0.5), ("max", "%1", 0.0), ("min", "%2", 1.0), ("mul", "%3", "%0")),
        (("tanh", "%0"), ("erf", "%1"), ("exp", "%2")),
        (("abs", "%0"), ("sqrt", "%1"), ("prelu", "%2", 0.25), ("neg", "%3")),
    ],
    ids=["sigmoid", "silu", "hardswish", "tanh-erf-exp", "sqrt-prelu"],
)
def test_activations(steps):
    program = Program((Operand("tensor", "uint8", 100),), steps)
    for output in (U8, F32):
        check(program, (1, 24, 5, 5), output)


@pytest.mark.parametrize("blocks", [(16, 16), (0, 16), (0, 0)])
@pytest.mark.parametrize("hw", [(1, 1), (3, 3)])
def test_division_keeps_padding_finite(blocks, hw):
    program = Program((Operand("tensor", "float32"), Operand("channel")), (("div", "%0", "%1"), ("div", 1.0, "%2")))
    check(program, (2, 19, *hw), F32, block=blocks[0], out_block=blocks[1])


def test_saturation_at_the_ends():
    spec = order(Program((Operand("tensor", "float32"),)), (1, 16, 4, 4), U8)
    ends = np.array([-1e30, 1e30, -7.5, -6.5, 247.5, 248.5, 0.5, 1.5, 4e9, -4e9], np.float32)
    values = np.resize(ends, (1, 16, 4, 4))
    assert_exact(RULE, spec, inputs=[values])
    wide = order(Program((Operand("tensor", "float32"),)), (1, 16, 4, 4), Output("uint8", 7, -math.inf, math.inf))
    assert_exact(RULE, wide, inputs=[np.clip(values, -7, 248)])


def test_addition_is_wide():
    text = assembly(RULE.build(order(ADD, (1, 64, 56, 56), U8), Constants(), ZNVER4))
    assert "vpackuswb" in text
    assert "vfmadd" in text
    assert "zmm" in text


def test_not_applicable():
    shape = (1, 16, 4, 4)
    mixed = Elementwise("l", (Tensor(shape, "uint8"), Tensor(shape, "uint8", 0)), Tensor(shape, "uint8"), ADD, U8)
    assert not RULE.applies(mixed, ZNVER4)
