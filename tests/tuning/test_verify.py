"""Records checked after the fact: right ones, and ones whose knobs no kernel has."""

from dataclasses import replace

import pytest

from tvm_int8.target import parse_target
from tvm_int8.tuning.record import Record
from tvm_int8.tuning.search import candidates_of
from tvm_int8.tuning.verify import verify
from tvm_int8.tuning.workload import Workload

INT8 = ("uint8", "int8", "uint8")
WORKLOAD = Workload(
    "conv2d", (1, 16, 6, 6), (1, 20, 6, 6), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, 16, INT8, threads=1
)


@pytest.mark.isa("avx512vnni")
def test_records_are_verified():
    candidate = candidates_of(WORKLOAD, parse_target("llvm -mcpu=cascadelake -num-cores=1").cpu)[1]
    good = Record(WORKLOAD, candidate.template, candidate.version, candidate.knobs, "cascadelake", 9.0, 10.0)
    bad = replace(good, knobs={"ow_tile": 4})
    found = {id(record): error for record, error in verify([bad, good], progress=False)}
    assert len(found) == 2
    assert found[id(good)] == ""
    assert found[id(bad)].startswith("cannot be built (")


def test_no_records():
    assert list(verify([], progress=False)) == []
