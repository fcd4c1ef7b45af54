"""PlanMemory: tensors that live at the same time never share a byte, others do; overlays lie where their parts do."""

import itertools

import numpy as np
import pytest
import tvm
from tvm import relax

from tests.passes.pass_testing import const, module, run
from tvm_int8.build import generate_code
from tvm_int8.overlay_op import is_overlay, offsets_of, overlay
from tvm_int8.passes.dataflow import Dataflow, op_name
from tvm_int8.passes.expressions import dtype_of, shape_of, vars_in
from tvm_int8.passes.plan_memory import ALIGNMENT, MEMORY, PlanMemory

op = relax.op
LOWERING = [
    relax.transform.LegalizeOps(),
    relax.transform.RewriteDataflowReshape(),
    relax.transform.ToNonDataflow(),
    relax.transform.RemovePurityChecking(),
    relax.transform.CallTIRRewrite(),
]


def with_allocations(body, **inputs) -> tvm.IRModule:
    return tvm.transform.Sequential(LOWERING)(module(body, **inputs))


def size(var) -> int:
    return int(np.prod(shape_of(var))) * np.dtype(dtype_of(var)).itemsize


class Planned:
    """A planned `main`: the place of every tensor, and when it is in use."""

    def __init__(self, before: tvm.IRModule):
        self.mod = PlanMemory()(before)
        relax.analysis.well_formed(self.mod)
        self.flow = Dataflow(self.mod)
        self.arena, self.others = (int(n) for n in self.mod["main"].attrs[MEMORY])
        self.places, self.uses, self.same = {}, {}, {}
        for index, binding in enumerate(self.flow.bindings):
            if op_name(binding.value) == "memory.alloc_tensor":
                storage, offset = binding.value.args[:2]
                self.places[binding.var] = (storage.name, int(offset))
                self.uses[binding.var] = []
            else:
                for var in vars_in(binding.value):
                    var = self.same.get(var, var)
                    if not isinstance(binding.value, relax.Call) or op_name(binding.value) == "reshape":
                        self.same[binding.var] = var
                    elif var in self.uses:
                        self.uses[var].append(index)

    def storages(self) -> dict[str, int]:
        """Name -> bytes."""
        found = [b for b in self.flow.bindings if op_name(b.value) == "memory.alloc_storage"]
        return {b.var.name: int(b.value.args[0].values[0]) for b in found}

    def check(self) -> None:
        """Everything lies inside its storage; what is in use at the same time does not overlap."""
        storages = self.storages()
        assert sum(storages.values()) == self.arena + self.others
        for var, (storage, offset) in self.places.items():
            assert 0 <= offset <= storages[storage] - size(var)
        for one, other in itertools.combinations(self.places, 2):
            (storage, first), (other_storage, second) = self.places[one], self.places[other]
            if storage == other_storage and first < second + size(other) and second < first + size(one):
                assert max(self.uses[one]) < min(self.uses[other]) or max(self.uses[other]) < min(self.uses[one])


def chain(emit, x):
    """Ten steps, of which two are alive at any time."""
    for _ in range(10):
        x = emit(op.exp(x))
    return x


def test_a_chain_needs_two_places():
    planned = Planned(with_allocations(chain, x=(1, 3, 8, 8)))
    planned.check()
    assert planned.arena == 2 * 3 * 8 * 8 * 4
    assert planned.others == 3 * 8 * 8 * 4  # the output's


def branches(emit, x):
    a = emit(op.exp(x))
    b = emit(op.nn.max_pool2d(a, (2, 2), (2, 2)))
    c = emit(op.astype(emit(op.nn.avg_pool2d(a, (2, 2), (2, 2))), "uint8"))
    d = emit(op.reshape(emit(op.add(b, emit(op.astype(c, "float32")))), (1, 48)))
    left, right = emit(op.exp(d)), emit(op.split(d, 2, axis=1))
    return [emit(op.add(left, d)), emit(op.add(right[0], right[1])), emit(op.negative(a))]


@pytest.mark.parametrize("body", [chain, branches])
def test_the_code_computes_what_it_did(body):
    before = with_allocations(body, x=(1, 3, 8, 8))
    Planned(before).check()
    lowered = tvm.transform.Sequential(LOWERING[:2])(module(body, x=(1, 3, 8, 8)))
    executable, _ = generate_code(lowered, tvm.target.Target({"kind": "llvm"}))
    x = np.random.default_rng(1).uniform(0, 1, (1, 3, 8, 8)).astype("float32")
    found = relax.VirtualMachine(executable, tvm.cpu())["main"](tvm.runtime.tensor(x))
    found = [found] if isinstance(found, tvm.runtime.Tensor) else list(found)
    for actual, expected in zip(found, run(module(body, x=(1, 3, 8, 8)), x), strict=True):
        np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-5)


def test_outputs_have_memory_of_their_own():
    planned = Planned(with_allocations(branches, x=(1, 3, 8, 8)))
    returned = {planned.same.get(var, var) for var in planned.flow.outputs}
    assert len(returned) == 3
    assert all(planned.places[var][0] != "arena" for var in returned)
    assert len({planned.places[var][0] for var in returned}) == 3
    inner = set(planned.places) - returned
    assert {planned.places[var][0] for var in inner} == {"arena"}


def test_overlays_lie_where_their_parts_do():
    def body(emit, x):
        a, b = emit(op.exp(x)), emit(op.negative(x))
        whole = emit(overlay([b, a], [0, 4 * 64], (1, 8, 4, 4), "float32"), "whole")
        middle = emit(overlay([whole], [-4 * 32], (1, 4, 4, 4), "float32"), "middle")
        long = emit(op.exp(emit(op.exp(const(1, 40, 4, 4)))))
        return [emit(op.exp(whole)), emit(op.add(middle, x)), emit(op.exp(long))]

    before = with_allocations(body, x=(1, 4, 4, 4))
    planned = Planned(before)
    places = {var.name: offset for var, (_, offset) in planned.places.items()}
    whole = places["whole"]
    assert whole % ALIGNMENT == 0
    assert places["middle"] == whole + 4 * 32
    assert sorted(offset - whole for offset in list(places.values())[:2]) == [0, 4 * 64]
    assert not any(is_overlay(binding.value) for binding in planned.flow.bindings)
    (first, second) = [b for b in Dataflow(before).bindings if is_overlay(b.value)]
    assert offsets_of(first.value) == [0, 256]
    assert offsets_of(second.value) == [-128]


def test_no_memory_but_the_output():
    planned = Planned(with_allocations(lambda emit, x: emit(op.exp(x)), x=(1, 3)))
    assert (planned.arena, planned.others) == (0, 12)
