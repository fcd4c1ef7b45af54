"""Candidates to code that a runner takes: MetaSchedule's `LocalBuilder`, whose worker processes do what stands here.

An artifact is a directory with the library of a candidate's sweep (`candidate.build_sweep`) and the constants it takes.
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tvm
from tvm.s_tir.meta_schedule.builder import BuilderInput, BuilderResult, LocalBuilder

from tvm_int8.target import ResolvedTarget, parse_target

from .candidate import Candidate, Sample, build_sweep, candidate_of, copies_for

TIMEOUT_S = 60.0
_LEAST_L2_BYTES = 2 << 20  # the machine that measures may have a larger L2 than the target
_LIBRARY, _CONSTANTS, _JOB = "sweep.so", "constants.npz", "job.json"


class Artifact(NamedTuple):
    """What `load_artifact` finds in a directory."""

    candidate: Candidate
    library: str
    constants: tuple[np.ndarray, ...]
    copies: int


def make_builder(resolved: ResolvedTarget, directory: str, workers: int, timeout_s: float = TIMEOUT_S) -> LocalBuilder:
    """Return a builder that puts artifacts into subdirectories of `directory`, with `workers` processes."""
    return LocalBuilder(
        max_workers=workers,
        timeout_sec=timeout_s,
        f_build=functools.partial(_build, target=str(resolved.tvm_target)),
        f_export=functools.partial(_export, directory=directory),
    )


def build(builder: LocalBuilder, modules: list[tvm.IRModule], target: tvm.target.Target) -> list[BuilderResult]:
    """Build scheduled placeholders; each result has an `artifact_path`, or an `error_msg`."""
    return list(builder.build([BuilderInput(module, target) for module in modules]))


def load_artifact(path: str) -> Artifact:
    """Read an artifact; its library stays where it is."""
    job = json.loads(Path(path, _JOB).read_text())
    with np.load(Path(path, _CONSTANTS)) as arrays:
        constants = tuple(arrays[f"arr_{i}"] for i in range(len(arrays.files)))
    return Artifact(Candidate.from_json(job["candidate"]), os.path.join(path, _LIBRARY), constants, job["copies"])


def _build(mod: tvm.IRModule, _target: Any, _params: Any, target: str) -> Any:
    candidate, resolved = candidate_of(mod), parse_target(target)
    cpu = replace(resolved.cpu, threads=candidate.workload.threads)
    sample = Sample.of(candidate.workload, with_result=False)
    kernel = candidate.kernel(sample.constants, cpu)
    copies = copies_for(kernel, sample, max(cpu.l2_bytes, _LEAST_L2_BYTES))
    return candidate, build_sweep(kernel, sample, copies, resolved.tvm_target), kernel.constants, copies


def _export(built: Any, directory: str) -> str:
    candidate, executable, constants, copies = built
    path = tempfile.mkdtemp(dir=directory)
    executable.export_library(os.path.join(path, _LIBRARY))
    np.savez(Path(path, _CONSTANTS), *constants)
    Path(path, _JOB).write_text(json.dumps({"candidate": candidate.to_json(), "copies": copies}))
    return path
