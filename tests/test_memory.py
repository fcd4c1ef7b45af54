"""Memory: what a module says it needs is what it takes, and running it again takes no more."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import tvm
from tvm import tirx

from tests.small_networks import NETWORKS, draw
from tvm_int8 import api
from tvm_int8.memory import STACK_BYTES, scratch_bytes
from tvm_int8.metadata import Memory, Metadata
from tvm_int8.schedules.vector import KernelBuilder, T, load, scratch, store


@pytest.fixture(scope="module")
def module():
    model = NETWORKS["inception"]()
    return api.compile(model, calibration=draw(model, 4, seed=0), progress=False)


def test_activations_are_what_a_run_asks_of_the_allocator(module):
    assert module.report.memory.activations == module.profile(repeat=1).activation_bytes > 0


def test_constants_are_in_the_library(module, tmp_path):
    module.export(tmp_path / "net.so")
    assert 0 < module.report.memory.constants < os.path.getsize(tmp_path / "net.so")


def test_reports_and_metadata_carry_it(module):
    memory = module.metadata.memory
    assert str(memory) in module.report.summary
    assert Memory(**module.report.to_dict()["memory"]) == memory
    assert Metadata.from_json(module.metadata.to_json()) == module.metadata
    assert json.loads(module.metadata.to_json())["memory"]["scratch"] == memory.scratch


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_running_again_takes_no_more_memory(module):
    (inputs,) = draw(NETWORKS["inception"](), 1, seed=1)
    arrays = list(inputs.values())
    for _ in range(20):
        module(*arrays)
    before = resident_bytes()
    for _ in range(300):
        module(*arrays)
    assert resident_bytes() - before < 1 << 20


def test_scratch_is_counted_once_per_thread():
    with KernelBuilder("with_scratch") as k:
        source, target = k.arguments(("source", (4, 1024), "float32"), ("target", (4, 1024), "float32"))
        whole = scratch(1024, "float32")
        store(whole, 0, load(source, 0))
        with T.parallel(4) as i:
            own, small = scratch(512, "float32"), scratch(STACK_BYTES // 4, "float32")
            store(own, 0, load(whole, 0))
            store(small, 0, load(own, 0))
            store(target, i * 1024, load(small, 0))
    assert isinstance(k.func, tirx.PrimFunc)
    assert scratch_bytes(k.func, 1) == 4096 + 2048
    assert scratch_bytes(k.func, 3) == 4096 + 3 * 2048


def test_results_are_not_overwritten_by_the_next_run(module):
    model = NETWORKS["inception"]()
    first, second = (list(inputs.values()) for inputs in draw(model, 2, seed=1))
    results = module(*first)
    kept = [result.copy() for result in results]
    module(*second)
    for result, copy in zip(results, kept, strict=True):
        np.testing.assert_array_equal(result, copy)
    assert isinstance(module._vm, tvm.relax.VirtualMachine)
