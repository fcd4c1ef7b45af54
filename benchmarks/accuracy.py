"""Accuracy of INT8 beside FP32's, on the same inputs: three presets, ONNX Runtime's quantiser and NNCF.

    python -m benchmarks.accuracy net.onnx --calibration calibration.npy --test test.npy --labels labels.npy
    python -m benchmarks.accuracy net.onnx --calibration c.npz --test t.npz --rows fast default best ort ort_entropy
    python -m benchmarks.accuracy net.onnx --calibration c.npz --test t.npz --json all.json --plot all.png

Everybody quantises the same model with the same calibration inputs, and each is judged against ONNX Runtime's FP32 on
the same test inputs. Inputs are files as `tvm-int8 calibrate` takes them, for the network's one input; labels are one
class per test input. Judged are the logits: a softmax at the end is left out. `--json` adds the network to a file, and
`--plot` then draws all that are in it. Metrics other than top-1: see `compare`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx

import tvm_int8
from benchmarks import accuracy_chart, judge, onnx_graph, peers
from benchmarks.accuracy_table import Comparison, Row, save
from benchmarks.chart import NoChartError
from benchmarks.peers import Absent, Infer, Runner
from benchmarks.timing import interleave
from tvm_int8.report import is_multiplying

ROUNDS = 20
BASE = "fast"
"""The row whose latency is 1."""


@dataclass
class OurRunner(Runner):
    """A network compiled here, and how many of its convolutions and dense layers are in FP32."""

    float_layers: int = 0


def _ours(model: onnx.ModelProto, calibration: Sequence[np.ndarray], threads: int, preset: str) -> OurRunner:
    start = time.perf_counter()
    shapes = onnx_graph.input_shapes(model)
    quantized = tvm_int8.quantize(model, list(calibration), preset, input_shapes=shapes, progress=False)
    seconds = time.perf_counter() - start
    module = tvm_int8.compile(quantized, num_threads=threads)
    own_rows = {row.layer: row for row in module.report if is_multiplying(row.op)}
    floats = sum(row.precision != "int8" for row in own_rows.values())
    return OurRunner(preset, module, tvm_int8.__version__, quantize_s=seconds, float_layers=floats)


MAKERS: dict[str, Callable[[onnx.ModelProto, Sequence[np.ndarray], int], Runner | Absent]] = {
    "fast": partial(_ours, preset="fast"),
    "default": partial(_ours, preset="default"),
    "best": partial(_ours, preset="best"),
    "ort": peers.ort_int8,
    "ort_entropy": partial(peers.ort_int8, method="Entropy"),
    "ort_percentile": partial(peers.ort_int8, method="Percentile"),
    "nncf": peers.nncf_int8,
}
"""Row to what quantises a network and makes it ready to run."""

ROWS = ("fast", "default", "best", "ort", "nncf")


def compare(
    model: onnx.ModelProto,
    calibration: Sequence[np.ndarray],
    inputs: Sequence[np.ndarray] | None = None,
    *,
    labels: np.ndarray | None = None,
    score: Callable[[Infer], float] | None = None,
    rows: Sequence[str] = ROWS,
    decide: Callable[[Sequence[np.ndarray]], np.ndarray] | None = judge.decisions,
    network: str = "",
    metric: str = "top-1",
    threads: int = 1,
) -> Comparison:
    """Quantise a network in several ways and judge each.

    Parameters
    ----------
    model : onnx.ModelProto
        With one input, judged as it is: for a classifier that ends in a softmax, `onnx_graph.logits_model` of it.
    calibration : sequence of ndarray
        Batches to take ranges from.
    inputs : sequence of ndarray, optional
        Other batches, to judge on. None: those that `score` looks at, in its order.
    labels : ndarray, optional
        What `decide` should return for all of `inputs`: the score is the share that it does.
    score : callable, optional
        Instead of labels, your metric in [0, 1]: it is given a function from an input to the list of outputs, and
        evaluates that on your data.
    rows : sequence of str
        Keys of `MAKERS`.
    decide : callable or None
        Makes decisions of the outputs of one batch. By default, the class with the largest logit; for a segmenter
        perhaps ``lambda outputs: outputs[0].argmax(1).ravel()``; None for networks that decide nothing.
    network, metric : str
        For the table.
    threads : int

    Raises
    ------
    ValueError
        Both labels and a score, neither inputs nor a score, or labels that do not fit the decisions.
    """
    if labels is not None and score is not None:
        raise ValueError("found both labels and a score, expected one of them: both would be the metric")
    if inputs is None and score is None:
        raise ValueError("found neither inputs nor a score, expected one of them: there is nothing to judge on")
    reference = peers.ort_fp32(model, calibration, threads)
    if isinstance(reference, Absent):
        raise ValueError(f"FP32 is taken from ONNX Runtime, which is missing: {reference.reason}")
    expected, float_score = _run(reference.infer, inputs, score)
    rate = partial(judge.judge, expected, labels=labels, decide=decide)
    float_row = _row("fp32", rate(expected), float_score)
    modules, found = {}, {}
    for name in rows:
        runner = _make(name, model, calibration, threads)
        if isinstance(runner, Absent):
            found[name] = Row(name, absent=runner.reason)
            continue
        outputs, own_score = _run(runner.infer, inputs, score)
        row = _row(name, rate(outputs), own_score, float_row.score)
        found[name] = replace(row, quantize_s=runner.quantize_s)
        if isinstance(runner, OurRunner):
            modules[name] = runner
    for name, latency in _latencies(modules, calibration).items():
        found[name] = replace(found[name], latency=latency, float_layers=modules[name].float_layers)
    return Comparison(network, metric, (float_row, *found.values()))


def _make(name: str, model: onnx.ModelProto, calibration: Sequence[np.ndarray], threads: int) -> Runner | Absent:
    try:
        return MAKERS[name](model, calibration, threads)
    except Exception as error:  # one quantiser's failure is a line of the table, not the end of the comparison
        return Absent(name, f"{type(error).__name__}: {error}".splitlines()[0])


def _run(
    infer: Infer, inputs: Sequence[np.ndarray] | None, score: Callable[[Infer], float] | None
) -> tuple[list[list[np.ndarray]], float | None]:
    """The outputs on the inputs, or on those that the score looks at; and the score, if there is one."""
    outputs: list[list[np.ndarray]] = []

    def recording(x: np.ndarray) -> list[np.ndarray]:
        outputs.append([np.array(value) for value in infer(x)])
        return outputs[-1]

    if inputs is None:
        assert score is not None
        return outputs, score(recording)
    for x in inputs:
        recording(x)
    return outputs, None if score is None else score(infer)


def _row(name: str, result: judge.Result, score: float | None, float_score: float | None = None) -> Row:
    score = result.accuracy if score is None else score
    lost = None if score is None or float_score is None else 100 * (float_score - score)
    return Row(name, score, lost, result.equal_decisions, result.sqnr_db)


def _latencies(modules: Mapping[str, Runner], calibration: Sequence[np.ndarray]) -> dict[str, float | None]:
    """Latency relative to `BASE`; None where that is missing, or alone."""
    if BASE not in modules or len(modules) < 2:
        return dict.fromkeys(modules)
    times = interleave({name: partial(module.infer, calibration[0]) for name, module in modules.items()}, ROUNDS)
    return {name: measured.relative_to(times[BASE]) for name, measured in times.items()}


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=(__doc__ or "").split("\n")[0])
    judge.add_files(parser)
    parser.add_argument("--rows", nargs="+", choices=list(MAKERS), default=list(ROWS), help="who quantises")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", help="of the network, for table and picture (default: the file's)")
    parser.add_argument("--json", type=Path, help="file to add the network to")
    parser.add_argument("--plot", type=Path, help=".png to draw the network in, or all that are in the --json file")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table of one network."""
    arguments = _arguments(argv)
    case = judge.Case.read(arguments)
    names = list(onnx_graph.input_shapes(case.model))
    if len(names) != 1:
        raise SystemExit(f"{arguments.model}: has {len(names)} inputs ({', '.join(names)}), expected one")
    inputs = ([batch[names[0]] for batch in batches] for batches in (case.calibration, case.test))
    options = {"labels": case.labels, "rows": arguments.rows, "threads": arguments.threads}
    comparison = compare(case.model, *inputs, network=arguments.name or case.name, **options)
    print(comparison)
    comparisons = [comparison] if arguments.json is None else save(comparison, arguments.json)
    if arguments.plot is not None:
        try:
            arguments.plot.write_bytes(accuracy_chart.draw(comparisons))
        except NoChartError as error:
            raise SystemExit(str(error)) from None
    return 0


if __name__ == "__main__":
    sys.exit(main())
