"""Candidates: as text, as MetaSchedule's schedules, and as sweeps that compute what the reference does."""

from dataclasses import replace

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm import relax

from tvm_int8.reference import evaluate
from tvm_int8.specs import Kernel
from tvm_int8.target import parse_target
from tvm_int8.tuning.candidate import (
    MOST_COPIES,
    Candidate,
    Sample,
    build_sweep,
    candidate_of,
    copies_for,
    meant_channels,
    placeholder,
    schedule_of,
)
from tvm_int8.tuning.search import candidates_of
from tvm_int8.tuning.workload import Workload

TARGET = parse_target("llvm -mcpu=cascadelake -num-cores=1")
INT8 = ("uint8", "int8", "uint8")
FLOAT32 = ("float32",) * 3


def conv(c=16, o=20, hw=(5, 6), dtypes=INT8, op="conv2d", groups=1):
    """A 3x3 convolution; 20 output channels leave lanes of the last block empty."""
    return Workload(op, (1, c, *hw), (1, o, *hw), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), groups, 16, dtypes, 1)


WORKLOADS = {
    "uint8": conv(),
    "int8": conv(dtypes=("uint8", "int8", "float32")),
    "float32": conv(dtypes=FLOAT32),
    "depthwise": conv(20, 20, op="depthwise_conv2d", groups=20),
    "transposed": Workload(
        "conv2d_transpose", (1, 16, 4, 4), (1, 8, 8, 8), (2, 2), (2, 2), (0, 0, 0, 0), (1, 1), 1, 16, INT8, 1
    ),
    "dense": Workload("dense", (1, 30, 1, 1), (1, 20, 1, 1), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1, 16, INT8, 1),
}


def first_candidate(workload):
    return candidates_of(workload, TARGET.cpu)[0]


def run(kernel: Kernel, sample: Sample, copies):
    """Call a sweep with these constants per copy; return what the last one left."""
    vm = relax.VirtualMachine(build_sweep(kernel, sample, len(copies), TARGET.tvm_target), tvm.cpu())
    out = tvm.runtime.tensor(np.full_like(sample.out, 0x5A))
    constants = [tvm.runtime.tensor(array) for copy in copies for array in copy]
    vm["main"](tvm.runtime.tensor(sample.data), *constants, out)
    return out.numpy()


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)
def test_json(workload):
    for candidate in candidates_of(workload, TARGET.cpu)[:5]:
        assert Candidate.from_json(candidate.to_json()) == candidate


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)
def test_schedules_stand_for_candidates(workload):
    module = placeholder(workload)
    candidates = candidates_of(workload, TARGET.cpu)[:5]
    schedules = [schedule_of(candidate, module) for candidate in candidates]
    assert [candidate_of(schedule.mod) for schedule in schedules] == candidates
    assert tvm_ffi.structural_equal(module, placeholder(workload))  # nobody wrote to it


def test_placeholders_differ_as_workloads_do():
    workloads = [*WORKLOADS.values(), replace(WORKLOADS["uint8"], threads=2)]
    modules = [placeholder(workload) for workload in workloads]
    for i, module in enumerate(modules):
        equal = [tvm_ffi.structural_equal(module, other) for other in modules]
        assert equal == [i == k for k in range(len(modules))]
    assert len({tvm_ffi.structural_hash(module) for module in modules}) == len(modules)


def test_samples_are_the_same_everywhere():
    for workload in WORKLOADS.values():
        one, other = Sample.of(workload), Sample.of(workload, with_result=False)
        np.testing.assert_array_equal(one.data, other.data)
        np.testing.assert_array_equal(one.constants.weight, other.constants.weight)
        np.testing.assert_array_equal(one.constants.bias, other.constants.bias)
        assert one.out.shape == other.out.shape
        assert one.out.any() and not other.out.any()


@pytest.mark.parametrize("name", ["uint8", "depthwise", "dense"])
def test_samples_tell_wrong_results_from_right_ones(name):
    """Most values are neither clipped at the ends of uint8, nor all the same."""
    workload = WORKLOADS[name]
    values = meant_channels(Sample.of(workload).out, workload.out[1])
    assert np.mean((values > 0) & (values < 255)) > 0.3
    assert len(np.unique(values)) > 5


def test_meant_channels():
    array = np.arange(2 * 20 * 3 * 2).reshape(2, 20, 3, 2)
    packed = np.full((2, 2, 3, 2, 16), -1)
    for c in range(20):
        packed[:, c // 16, :, :, c % 16] = array[:, c]
    np.testing.assert_array_equal(meant_channels(packed, 20), array)


def test_copies():
    """As many as fill L2 twice over, within reason, whatever they are."""
    workload = conv(64, 64, (7, 7))
    sample = Sample.of(workload, with_result=False)
    kernel = first_candidate(workload).kernel(sample.constants, TARGET.cpu)
    size = sample.data.nbytes + sample.out.nbytes + sum(array.nbytes for array in kernel.constants)
    for times in (1, 3, 7):
        copies = copies_for(kernel, sample, times * size // 2)
        assert times - 1 <= copies <= times + 1
        assert copies * size >= 2 * (times * size // 2)
    assert copies_for(kernel, sample, 1) == 1
    assert copies_for(kernel, sample, 1 << 30) == MOST_COPIES


@pytest.mark.isa("avx512vnni")
@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)
def test_sweeps_deliver_the_sample(workload):
    sample = Sample.of(workload)
    kernel = first_candidate(workload).kernel(sample.constants, TARGET.cpu)
    channels = workload.out[1]
    for copies in (1, 3):
        found = run(kernel, sample, [kernel.constants] * copies)
        np.testing.assert_array_equal(meant_channels(found, channels), meant_channels(sample.out, channels))


@pytest.mark.isa("avx512vnni")
@pytest.mark.parametrize("name", ["uint8", "float32"])
def test_every_call_of_a_sweep_takes_its_own_copy(name):
    """The last call's result stays: what the others did with other constants is gone."""
    workload = WORKLOADS[name]
    sample, channels = Sample.of(workload), workload.out[1]
    kernel = first_candidate(workload).kernel(sample.constants, TARGET.cpu)
    zeros = [np.zeros_like(array) for array in kernel.constants]
    expected = meant_channels(sample.out, channels)
    np.testing.assert_array_equal(
        meant_channels(run(kernel, sample, [zeros, zeros, kernel.constants]), channels), expected
    )
    assert not meant_channels(run(kernel, sample, [kernel.constants, kernel.constants, zeros]), channels).any()


@pytest.mark.isa("avx512vnni")
@pytest.mark.parametrize("name", ["uint8", "float32"])
def test_a_sample_is_the_reference_of_its_spec(name):
    """Sample.out in memory is `evaluate` of the logical arrays."""
    workload = WORKLOADS[name]
    sample = Sample.of(workload)
    data = meant_channels(sample.data, workload.data[1])
    expected = evaluate(workload.spec(), [data], sample.constants)
    np.testing.assert_array_equal(meant_channels(sample.out, workload.out[1]), expected)
