"""Specs and constants of Winograd convolutions."""

import numpy as np

from tvm_int8 import winograd
from tvm_int8.schedules.rule import Constants
from tvm_int8.specs import Operand, Output, Program, Tensor, WinogradConv2d

RELU_U8 = Output("uint8", 0, 0, 255)


def winograd_spec(
    n=1, c=16, o=16, hw=(8, 8), padding=(1, 1, 1, 1), tile=(4, 4), wide=(), dtype="uint8", output=RELU_U8,
    operands=(), steps=None, pad_value=3,
):  # fmt: skip
    """A 3x3 convolution; wide: positions, or "all"."""
    out = hw[0] + padding[0] + padding[2] - 2, hw[1] + padding[1] + padding[3] - 2
    result, data = Tensor((n, o, *out), output.dtype), Tensor((n, c, *hw), dtype)
    extra = tuple(Tensor(result.shape, op.dtype) for op in operands)
    program = Program((Operand("acc"), Operand("channel"), *operands), steps or (("mul", "%0", "%1"),))
    return WinogradConv2d(
        "conv", (data, *extra), result, program, output, kernel=(3, 3), padding=padding,
        pad_value=pad_value if dtype == "uint8" else 0, tile=tile,
        wide=tuple(range(winograd.positions(tile))) if wide == "all" else tuple(wide),
    )  # fmt: skip


def winograd_constants(spec, seed=0):
    """Random ones of every range."""
    rng, count = np.random.default_rng(seed), winograd.positions(spec.tile)
    c, o, channels = spec.inputs[0].shape[1], spec.result.shape[1], ()
    channels = tuple((rng.random(o) + 0.5).astype(np.float32) for op in spec.program.operands if op.kind == "channel")
    bias = (rng.standard_normal(o) * 100).astype(np.float32)
    if spec.inputs[0].dtype == "float32":
        weight = winograd.transformed_weight(rng.standard_normal((o, c, 3, 3)), spec.tile)
        return Constants(weight.astype(np.float32), bias, channels)
    wide = len(spec.wide)
    return Constants(
        rng.integers(-127, 128, (count - wide, o, c)).astype(np.int8),
        bias,
        channels,
        wide_weight=rng.integers(-1000, 1001, (wide, o, c)).astype(np.int16),
        input_scale=rng.integers(100, 32768, (count - wide, c)).astype(np.int16),
        output_scale=(rng.random((count, o)) * 1e-3).astype(np.float32),
    )
