"""LiftConstants: a network's weights as parameters, without compiling it again for others."""

import numpy as np
import pytest
import tvm
from tvm import relax

from tests.passes.pass_testing import assert_unchanged, const, f32, module
from tvm_int8 import pipeline
from tvm_int8.build import generate_code
from tvm_int8.kernel_op import constants_of, is_kernel, spec_of
from tvm_int8.passes.dataflow import Dataflow, const_value, constant
from tvm_int8.passes.lift_constants import LiftConstants
from tvm_int8.schedules.registry import deliver
from tvm_int8.schedules.rule import Constants
from tvm_int8.specs import Conv2d
from tvm_int8.target import parse_target

op = relax.op
TARGET = parse_target("native")
SHAPE = (1, 3, 7, 9)


def network(weights, maps=None):
    """Three convolutions, one of them depthwise, and perhaps the same picture added to every result."""

    def body(emit, x):
        y = emit(op.nn.conv2d(x, constant(weights[0]), padding=1), "conv1")
        y = emit(op.nn.relu(emit(op.add(y, const(1, 18, 1, 1)))), "relu1")
        y = emit(op.nn.conv2d(y, constant(weights[1]), padding=1, groups=18), "conv2")
        y = emit(op.nn.conv2d(y, constant(weights[2])), "conv3")
        return op.negative(y) if maps is None else op.add(y, constant(maps))

    return module(body, x=SHAPE)


def drawn(seed):
    return [f32(*shape, seed=seed + i) for i, shape in enumerate([(18, 3, 3, 3), (18, 1, 3, 3), (5, 18, 1, 1)])]


def lowered(mod):
    return pipeline.lower(TARGET.cpu)(mod)


def kernels(mod):
    """Names of the bindings of convolutions, in order, and the constants their kernels want."""
    placed = Dataflow(pipeline.place()(mod)).bindings
    convolutions = [b for b in placed if is_kernel(b.value) and isinstance(spec_of(b.value), Conv2d)]
    packed = [
        deliver(spec_of(b.value), Constants.of(constants_of(b.value)), TARGET.cpu).constants for b in convolutions
    ]
    return [b.var.name for b in convolutions], packed


def counts(names, packed):
    return {name: len(own) for name, own in zip(names, packed, strict=True)}


def call(executable, x, constants=()):
    machine = relax.VirtualMachine(executable, tvm.cpu())
    arguments = [x, *(array for packed in constants for array in packed)]
    return machine["main"](*[tvm.runtime.tensor(np.ascontiguousarray(array)) for array in arguments]).numpy()


def run(mod, x):
    return call(generate_code(mod, TARGET.tvm_target)[0], x)


@pytest.fixture(scope="module")
def plain():
    return network(drawn(1))


@pytest.fixture(scope="module")
def lifted(plain):
    before = lowered(plain)
    text = before.script()
    after = LiftConstants(counts(*kernels(plain)))(before)
    relax.analysis.well_formed(after)
    assert before.script() == text
    return after


@pytest.fixture(scope="module")
def executable(lifted):
    return generate_code(lifted, TARGET.tvm_target)[0]


def test_parameters_stand_behind_the_inputs_in_the_order_of_the_names(plain):
    names, packed = kernels(plain)
    after = LiftConstants(counts(names[::-1], packed[::-1]))(lowered(plain))
    wanted = [f"{name}_{i}" for name, own in zip(names[::-1], packed[::-1], strict=True) for i in range(len(own))]
    assert [param.name for param in after["main"].params] == ["x", *wanted]


def test_kernels_read_the_parameters_and_no_constants(plain, lifted):
    names, _ = kernels(plain)
    for binding in Dataflow(lifted).bindings:
        if binding.var.name in names:
            operands = binding.value.args[1].fields
            assert not any(const_value(operand) is not None for operand in operands)
            assert set(operands[1:]) < set(lifted["main"].params)


def test_other_kernels_keep_their_constants(plain):
    names, packed = kernels(plain)
    after = LiftConstants(counts(names[1:2], packed[1:2]))(lowered(plain))
    assert len(after["main"].params) == 1 + len(packed[1])
    (first,) = [b.value for b in Dataflow(after).bindings if b.var.name == names[0]]
    assert any(const_value(operand) is not None for operand in first.args[1].fields)


def test_without_names_nothing_changes(plain):
    before = lowered(plain)
    assert_unchanged(before, LiftConstants({})(before))


def test_a_name_that_is_not_there(plain):
    with pytest.raises(KeyError, match="nothing"):
        LiftConstants({"nothing": 2})(lowered(plain))


def test_the_same_constants_give_the_same_bits(plain, executable):
    x = f32(*SHAPE, seed=9)
    np.testing.assert_array_equal(call(executable, x, kernels(plain)[1]), run(lowered(plain), x))


def test_other_constants_give_what_compiling_with_them_gives(executable):
    x, other = f32(*SHAPE, seed=9), network(drawn(50))
    np.testing.assert_array_equal(call(executable, x, kernels(other)[1]), run(lowered(other), x))


def test_constant_tensors_that_a_kernel_reads_are_no_weights():
    """A picture that is added is an input of the kernel like any other; it stays where it is."""
    mod, x = network(drawn(1), f32(1, 5, 7, 9, seed=4)), f32(*SHAPE, seed=9)
    names, packed = kernels(mod)
    after = LiftConstants(counts(names, packed))(lowered(mod))
    assert len(after["main"].params) == 1 + sum(map(len, packed))
    found = call(generate_code(after, TARGET.tvm_target)[0], x, packed)
    np.testing.assert_array_equal(found, run(lowered(mod), x))
