"""The shipped logs: readable to the last line, for templates as they are, and complete for the benchmark set."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks import onnx_graph, ship_logs
from benchmarks.light_models import LIGHT_MODELS
from benchmarks.networks import GROUPS
from benchmarks.zoo import ZOO, builder, operators
from tvm_int8.config import QuantizationConfig
from tvm_int8.frontend import load_model
from tvm_int8.passes import quantizers
from tvm_int8.target import parse_target
from tvm_int8.tuning.log_file import read_log
from tvm_int8.tuning.lookup import lookup, shipped_directory
from tvm_int8.tuning.tasks import workloads_of

COMPLETE = ("cascadelake", "znver4")
LIGHT_SET = ("skylake-avx512",)
FILES = sorted(shipped_directory().glob("*/*.jsonl"))


def without_numbers(x, weight, strides, pads, groups=1, dilation=(1, 1)):
    """A convolution's shape: the values of the zoo's weights and activations decide no workload."""
    n, _, height, width = x.shape
    kh, kw = ((k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilation, strict=True))
    out = (height + pads[0] + pads[2] - kh) // strides[0] + 1, (width + pads[1] + pads[3] - kw) // strides[1] + 1
    return np.resize(np.arange(7, dtype=np.float32), (n, weight.shape[0], *out))


def zeros(weight, axis, name, **_):
    """Instead of `quantize_weight`."""
    return np.zeros(weight.shape, np.int8), np.ones((), np.float32)


def model_of(name: str) -> onnx.ModelProto:
    """A network of the benchmark set with constant weights, which takes no time."""
    if name in LIGHT_MODELS:
        folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
        return onnx.load(str(folder / f"{LIGHT_MODELS[name]}.onnx"))
    with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
        patch.setattr(
            builder.GraphBuilder,
            "_he",
            lambda self, shape: np.resize(np.float32([0.01, -0.02, 0.03, 0.01, -0.04]), shape),
        )
        patch.setattr(builder.numpy_layers, "conv2d", without_numbers)
        patch.setattr(operators.onnx.checker, "check_model", lambda model: None)
        return ZOO[name]()


@cache
def workloads(name: str) -> frozenset:
    """On one thread, of the INT8 network."""
    cpu = replace(parse_target("cascadelake").cpu, threads=1)
    config = QuantizationConfig(bias_correction=False, per_channel_weights=False)
    model = onnx_graph.logits_model(model_of(name))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantizers, "quantize_weight", zeros)
        return frozenset(workloads_of(load_model(model), cpu, config))


def test_logs_are_shipped_for_the_cpus_that_are_promised():
    assert {path.parent.name for path in FILES} >= {*COMPLETE, *LIGHT_SET}


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_line_is_a_record_of_templates_as_they_are(path):
    log = read_log(path)
    assert log.problems == []
    assert len(log.headers) == 1 and "easured on" in log.headers[0]
    assert {record.target for record in log.records} == {path.parent.name}
    assert len({record.workload for record in log.records}) == len(log.records)
    assert all(record.final and record.cpu and record.cpu in log.headers[0] for record in log.records)
    assert all(record.ratio <= 1 for record in log.records)


@pytest.mark.parametrize("mcpu", COMPLETE)
@pytest.mark.parametrize("threads", [1, 2])
def test_every_record_is_used(mcpu, threads):
    resolved = parse_target(mcpu)
    resolved = replace(resolved, cpu=replace(resolved.cpu, threads=threads))
    choose = lookup("shipped", resolved)
    for record in read_log(ship_logs.shipped_file(mcpu, threads)).records:
        choice = choose(record.workload.spec())
        assert choice is not None, str(record.workload)
        assert choice.origin == f"tuned: {mcpu}"
        assert (choice.template, choice.knobs) == (record.template, record.knobs)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in GROUPS["all"] if name not in ship_logs.REPEATED])
def test_the_benchmark_set_is_covered(name):
    files = [(mcpu, threads) for mcpu in COMPLETE for threads in (1, 2)]
    files += [(mcpu, 1) for mcpu in LIGHT_SET if name in LIGHT_MODELS]
    for mcpu, threads in files:
        path = ship_logs.shipped_file(mcpu, threads)
        known = {replace(record.workload, threads=1) for record in read_log(path).records}
        needed = {workload for workload in workloads(name) if workload.tile is None or mcpu in COMPLETE}
        assert sorted(str(workload) for workload in needed - known) == [], path
