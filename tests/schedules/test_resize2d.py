"""Nearest and linear resizing, to the last bit."""

from dataclasses import replace

import numpy as np
import pytest

from tests.schedules.kernel_testing import CASCADELAKE, NATIVE, ZNVER4, assert_exact
from tvm_int8.schedules.resize2d import Resize2dRule
from tvm_int8.schedules.rule import Constants
from tvm_int8.specs import Operand, Output, Program, Resize2d, Tensor

RULE = Resize2dRule()
ACC = Program((Operand("acc"),))
SCALED = Program((Operand("acc"),), (("mul", "%0", 0.8), ("max", "%1", 0.0)))
FULL = Program(
    (Operand("acc"), Operand("channel"), Operand("tensor", "uint8", 9)), (("mul", "%2", 0.3), ("fma", "%0", "%1", "%3"))
)
U8 = Output("uint8", 7, -7, 248)


def nearest_table(size, target):
    return tuple((i * size // target, i * size // target, 0.0) for i in range(target))


def linear_table(size, target):
    """Half-pixel centres."""
    centre = np.clip((np.arange(target) + 0.5) * size / target - 0.5, 0, size - 1)
    low = np.floor(centre).astype(int)
    high, weight = np.minimum(low + 1, size - 1), (centre - low).astype(np.float32)
    return tuple((int(a), int(b), float(w)) for a, b, w in zip(low, high, weight, strict=True))


def resize(method, channels, source, target, dtype="uint8", program=ACC, output=U8, batch=2, zero_point=7):
    table = nearest_table if method == "nearest" else linear_table
    result = Tensor((batch, channels, *target), output.dtype)
    tensors = [Tensor((batch, channels, *source), dtype)]
    tensors += [Tensor(result.shape, o.dtype) for o in program.operands if o.kind == "tensor"]
    rows, cols = (table(s, t) for s, t in zip(source, target, strict=True))
    return Resize2d("layer", tuple(tensors), result, program, output, method, rows, cols, zero_point)


def check(spec, cpu=NATIVE):
    channels = [np.linspace(-1, 1, spec.result.shape[1], dtype=np.float32)] * sum(
        o.kind == "channel" for o in spec.program.operands
    )
    assert_exact(RULE, spec, Constants(channels=channels), cpu=cpu)


@pytest.mark.parametrize("method", ["nearest", "linear"])
@pytest.mark.parametrize("channels", [1, 3, 8, 16, 17, 40, 64])
def test_channels(method, channels):
    check(resize(method, channels, (5, 7), (10, 14)))
    check(resize(method, channels, (5, 7), (10, 14), "float32", output=Output("float32"), zero_point=0))


@pytest.mark.parametrize("method", ["nearest", "linear"])
@pytest.mark.parametrize(
    "source, target", [((1, 1), (3, 5)), ((4, 8), (8, 16)), ((28, 28), (56, 56)), ((9, 5), (4, 13)), ((5, 3), (5, 9))]
)
@pytest.mark.parametrize("cpu", [NATIVE, CASCADELAKE], ids=lambda cpu: cpu.name)
def test_sizes(method, source, target, cpu):
    for program in (ACC, FULL):
        check(resize(method, 20, source, target, program=program), cpu)
    check(resize(method, 20, source, target, "float32", output=Output("float32"), zero_point=0), cpu)


@pytest.mark.parametrize("method", ["nearest", "linear"])
@pytest.mark.parametrize("dtypes", ["uint8-uint8", "int8-uint8", "uint8-float32", "float32-uint8"])
def test_dtypes_and_programs(method, dtypes):
    source, target = dtypes.split("-")
    output = U8 if target == "uint8" else Output("float32", 0, 0.0, 6.0)
    for program in (ACC, SCALED):
        check(resize(method, 24, (6, 5), (12, 15), source, program, output, zero_point=0 if source == "float32" else 3))


@pytest.mark.parametrize("method", ["nearest", "linear"])
@pytest.mark.parametrize("channels", [1, 16, 21])
@pytest.mark.parametrize("target", [(10, 14), (7, 16), (6, 33)])
def test_plain_results(method, channels, target):
    """Sixteen pixels of a row are transposed at a time; a row's last pixels and a block's missing channels are not."""
    output = Output("float32", 0, 0.0, 6.0)
    for dtype, program, zero_point in (("uint8", ACC, 3), ("float32", SCALED, 0)):
        spec = resize(method, channels, (5, 7), target, dtype, program, output, zero_point=zero_point)
        check(replace(spec, result=replace(spec.result, block=0)))


def test_only_float_results_are_plain():
    spec = resize("linear", 8, (5, 7), (10, 14))
    assert not RULE.applies(replace(spec, result=replace(spec.result, block=0)), ZNVER4)
