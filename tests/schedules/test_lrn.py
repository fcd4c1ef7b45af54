"""LrnRule: windows, blocks, powers and programs, to the last bit."""

from dataclasses import replace

import numpy as np
import pytest

from tests.schedules.kernel_testing import CASCADELAKE, NATIVE, ZNVER4, assert_exact
from tvm_int8.quantization import arithmetic
from tvm_int8.reference.lrn import accumulate
from tvm_int8.schedules.cpu import Cpu
from tvm_int8.schedules.lrn import LrnRule
from tvm_int8.schedules.rule import Constants
from tvm_int8.specs import Lrn, Operand, Output, Program, Tensor

ONE_THREAD = replace(NATIVE, threads=1)
IDENTITY = Program((Operand("acc"),))
BYTES = Output("uint8", 11, -11, 244)


def spec_of(c=24, hw=(5, 6), n=1, size=5, before=None, alpha=0.3, beta=0.75, bias=1.5, dtype="uint8", output=None,
            program=IDENTITY):  # fmt: skip
    output = output or (BYTES if dtype == "uint8" else Output("float32"))
    result = Tensor((n, c, *hw), output.dtype)
    shapes = {"tensor": result.shape, "vector": (n, c, 1, 1), "map": (n, 1, *hw)}
    extra = tuple(Tensor(shapes[o.kind], o.dtype) for o in program.operands if o.kind in shapes)
    before = (size - 1) // 2 if before is None else before
    return Lrn("norm", (Tensor((n, c, *hw), dtype), *extra), result, program, output, size, before, alpha, beta, bias,
               7 if dtype == "uint8" else 0)  # fmt: skip


def check(spec, cpu=NATIVE, inputs=None):
    rng = np.random.default_rng(4)
    named = [o for o in spec.program.operands if o.kind == "channel"]
    channels = tuple(rng.standard_normal(spec.result.shape[1]).astype(np.float32) for _ in named)
    return assert_exact(LrnRule(), spec, Constants(channels=channels), inputs, cpu)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("hw", [(1, 1), (1, 3), (2, 2), (1, 5), (9, 11)])
@pytest.mark.parametrize("c", [1, 3, 16, 17, 32, 40, 64, 70])
def test_shapes(c, hw, dtype):
    check(spec_of(c, hw, n=2, dtype=dtype))


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize(
    ("size", "before"), [(1, 0), (2, 0), (2, 1), (3, 1), (4, 2), (4, 0), (9, 4), (17, 0), (17, 16), (33, 16)]
)
def test_windows(size, before, dtype):
    for c in (5, 40, 48):
        check(spec_of(c, size=size, before=before, dtype=dtype))


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("beta", [0.75, 0.5, 1.0, 0.9, 2.0, 0.0])
def test_powers(beta, dtype):
    check(spec_of(40, beta=beta, dtype=dtype))
    check(spec_of(40, beta=beta, dtype=dtype, alpha=1e-4, bias=2.0))


@pytest.mark.parametrize("cpu", [CASCADELAKE, ONE_THREAD], ids=["cascadelake", "one thread"])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_cpus(cpu, dtype):
    check(spec_of(72, (30, 31), n=2, dtype=dtype), cpu)


@pytest.mark.isa("avx2")
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_256_bits(dtype):
    check(spec_of(40, dtype=dtype, beta=0.8), Cpu("haswell", "avx2", 256, 16, threads=2))


PROGRAMS = {
    "scale": ((Operand("channel"),), (("mul", "%0", "%1"),)),
    "added": ((Operand("tensor", "uint8", 3),), (("add", "%0", "%1"),)),
    "gate": ((Operand("vector"), Operand("map")), (("mul", "%0", "%1"), ("fma", "%3", "%2", "%0"))),
    "sigmoid": ((), (("sigmoid", "%0"), ("fma", "%1", 9.0, "%0"))),
}


@pytest.mark.parametrize(
    "output", [BYTES, Output("uint8", 30, -3, 9.5), Output("float32"), Output("float32", 0, -1.0, 6.0)]
)
@pytest.mark.parametrize("beta", [0.75, 0.6])
@pytest.mark.parametrize("program", PROGRAMS)
def test_programs(program, beta, output):
    operands, steps = PROGRAMS[program]
    check(spec_of(n=2, c=20, output=output, beta=beta, program=Program((Operand("acc"), *operands), steps)))


@pytest.mark.parametrize("value", [0, 255])
def test_extremes(value):
    spec = spec_of(alpha=300.0, bias=1e-6, output=Output("float32"))
    check(spec, inputs=[np.full(spec.inputs[0].shape, value, np.uint8)])


def test_what_the_rule_takes():
    assert LrnRule().applies(spec_of(size=33, before=16), ZNVER4)
    assert not LrnRule().applies(spec_of(size=34, before=16), ZNVER4)
    assert not LrnRule().applies(spec_of(size=18, before=17), ZNVER4)
    assert not LrnRule().applies(spec_of(dtype="int8"), ZNVER4)


@pytest.mark.parametrize("beta", [0.5, 0.75, 1.0, 0.6, 1.7])
def test_the_formula(beta):
    """The reference against float64."""
    spec = spec_of(9, size=4, before=1, beta=beta, dtype="float32")
    data = (np.random.default_rng(3).standard_normal(spec.inputs[0].shape) * 5).astype(np.float32)
    exact = data.astype(np.float64)
    sums = np.stack([(exact[:, max(0, c - 1) : c + 3] ** 2).sum(1) for c in range(9)], axis=1)
    np.testing.assert_allclose(accumulate(spec, data), exact / (1.5 + 0.3 / 4 * sums) ** beta, rtol=1e-6)


def test_log_is_exact_to_a_few_units_in_the_last_place():
    x = np.exp(np.linspace(-80, 80, 100001)).astype(np.float32)
    near = np.linspace(0.6, 1.6, 100001).astype(np.float32)
    for values in (x, near):
        np.testing.assert_allclose(arithmetic.log(values), np.log(values.astype(np.float64)), rtol=2e-7, atol=1e-10)
    assert arithmetic.log(np.float32(1)) == 0
