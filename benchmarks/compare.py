"""Compare tvm_int8 with other runtimes: same file, same inputs, same process, runs interleaved.

    python -m benchmarks.compare resnet50 squeezenet --threads 1 --rounds 20
    python -m benchmarks.compare mobilenet_v1_025 path/to/model.onnx --threads 1 2 --output results/mine
    python -m benchmarks.compare zoo --rounds 5       # groups of networks: light, zoo, all
    python -m benchmarks.compare --list

Each network is compiled by tvm_int8 (INT8 and FP32) and handed to every peer that is installed. All outputs are checked
against ONNX Runtime FP32 before anything is timed, and the check's figures stand in the table beside the times.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from benchmarks import metrics, onnx_graph, peers, report
from benchmarks.networks import GROUPS, Network, expand, load_network
from benchmarks.peers import Absent, Runner
from benchmarks.timing import interleave

FP32_TOLERANCE = 1e-3
"""Largest difference allowed between FP32 outputs, relative to the largest magnitude of the output."""


def tvm_int8_fp32(
    model: onnx.ModelProto, calibration: Sequence[np.ndarray], threads: int, target: str = "native"
) -> Runner:
    """tvm_int8 without quantisation."""
    import tvm_int8

    module = tvm_int8.compile(model, target, quantization=None, num_threads=threads)
    return Runner("tvm_int8 FP32", module, tvm_int8.__version__)


def tvm_int8_int8(
    model: onnx.ModelProto, calibration: Sequence[np.ndarray], threads: int, target: str = "native"
) -> Runner:
    """tvm_int8 with its default quantisation."""
    import tvm_int8

    module = tvm_int8.compile(model, target, calibration=list(calibration), num_threads=threads)
    macs = sum(row.macs for row in module.metadata.kernels)
    return Runner("tvm_int8 INT8", module, tvm_int8.__version__, macs)


RUNNERS: dict[str, Callable[..., Runner | Absent]] = {
    "tvm_int8": tvm_int8_int8,
    "tvm_fp32": tvm_int8_fp32,
    **peers.PEERS,
}
"""Name on the command line to the function that makes the runner, in the order of the table's columns."""


@dataclass(frozen=True)
class Options:
    """What a comparison is made with.

    Attributes
    ----------
    runners : sequence of str
        Keys of `RUNNERS`.
    rounds : int
        Interleaved rounds; each times every runner three times.
    calibration, checks : int
        Number of calibration inputs, and of other inputs whose outputs are compared.
    limit_s : float
        Seconds after which no new round begins.
    target : str
        What tvm_int8 compiles for; the peers always take what this CPU has.
    """

    runners: Sequence[str] = tuple(RUNNERS)
    rounds: int = 20
    calibration: int = 16
    checks: int = 8
    limit_s: float = 60.0
    target: str = "native"


def compare(network: Network, threads: int, options: Options) -> dict:
    """Check and time one network with every runner.

    Returns
    -------
    dict
        Ready for JSON: ``network``, ``threads``, ``runners`` (per runner its times in ms, SQNR in dB, relative error,
        share of equal decisions, seconds to prepare), ``absent`` (runner to reason), ``ratios`` and ``floor`` (``macs``
        and ``peak_gmacs_per_s``, or the ``reason`` why they are missing).
    """
    model = onnx_graph.logits_model(network.model)
    calibration, inputs = network.inputs(options.calibration, 0), network.inputs(options.checks, 1)
    runners, absent, rows = {}, {}, {}
    for key in options.runners:
        start = time.perf_counter()
        made = _make(key, model, calibration, threads, options.target)
        if isinstance(made, Absent):
            absent[key] = made.reason
            continue
        runners[key] = made
        rows[key] = {"name": made.name, "version": made.version, "prepare_s": round(time.perf_counter() - start, 2)}
    for key, checks in _check(runners, model, inputs).items():
        rows[key].update(checks)
    for key, times in _time(runners, inputs[0], options).items():
        rows[key].update(times.statistics())
    return {
        "network": network.name,
        "threads": threads,
        "runners": rows,
        "absent": absent,
        "ratios": report.ratios(rows),
        "floor": _floor(runners, threads, options.target),
    }


def _make(
    key: str, model: onnx.ModelProto, calibration: Sequence[np.ndarray], threads: int, target: str
) -> Runner | Absent:
    try:
        made = RUNNERS[key](model, calibration, threads, *([] if key in peers.PEERS else [target]))
        if isinstance(made, Runner):
            made.infer(calibration[0])
        return made
    except Exception as error:  # one runtime's failure is a line of the report, not the end of the comparison
        return Absent(key, f"{type(error).__name__}: {error}".splitlines()[0])


def _check(runners: dict[str, Runner], model: onnx.ModelProto, inputs: list[np.ndarray]) -> dict[str, dict]:
    """Compare every runner's outputs with ONNX Runtime FP32's, over all inputs together."""
    reference = runners.get("ort_fp32") or peers.ort_fp32(model, [], 1)
    if isinstance(reference, Absent):
        return {key: {} for key in runners}
    expected = [reference.infer(x) for x in inputs]
    found = {}
    for key, runner in runners.items():
        actual = [[np.array(value) for value in runner.infer(x)] for x in inputs]
        flat = [[value for values in outputs for value in values] for outputs in (expected, actual)]
        error = metrics.relative_error(*flat)
        found[key] = {
            "sqnr_db": round(metrics.sqnr_db(*flat), 2) if key != "ort_fp32" else None,
            "relative_error": error,
            "equal_decisions": metrics.equal_decisions([e[0] for e in expected], [a[0] for a in actual]),
            "correct": error <= FP32_TOLERANCE if key.endswith("fp32") else None,
        }
    return found


def _time(runners: dict[str, Runner], x: np.ndarray, options: Options):
    calls = {key: (lambda infer=runner.infer: infer(x)) for key, runner in runners.items()}
    gc.collect()
    gc.disable()
    try:
        return interleave(calls, options.rounds, limit_s=options.limit_s)
    finally:
        gc.enable()


def _floor(runners: dict[str, Runner], threads: int, target: str) -> dict:
    """Return what the direct-convolution floor is made of; the peak is measured anew beside every network."""
    if "tvm_int8" not in runners or not runners["tvm_int8"].macs:
        return {"reason": "needs the multiply-adds that tvm_int8 INT8 counts"}
    from benchmarks import peak

    if reason := peak.unavailable():
        return {"reason": reason}
    macs, rate = runners["tvm_int8"].macs, round(peak.peak_gmacs_per_s(threads, target), 1)
    return {"macs": macs, "peak_gmacs_per_s": rate, "instruction": peak.instruction(target)}


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("networks", nargs="*", default=["resnet50", "squeezenet"], help="names, groups, .onnx files")
    parser.add_argument("--list", action="store_true", help="print the names of networks and groups, and end")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="thread counts, one table each")
    parser.add_argument("--rounds", type=int, default=20, help="interleaved rounds (default 20)")
    parser.add_argument("--runners", nargs="+", choices=list(RUNNERS), default=list(RUNNERS), help="default: all")
    parser.add_argument("--calibration", type=int, default=16, help="calibration inputs (default 16)")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds of timing per network and thread count")
    parser.add_argument("--target", default="native", help="what tvm_int8 compiles for (default: this CPU)")
    parser.add_argument("--cache", type=Path, help="folder to keep generated networks in")
    parser.add_argument("--output", type=Path, help="writes OUTPUT.json, OUTPUT.md and OUTPUT.png")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; the exit code is 1 when an FP32 output is wrong or tvm_int8 failed on a network."""
    arguments = _arguments(argv)
    if arguments.list:
        print("\n".join(f"{group}: {' '.join(names)}" for group, names in GROUPS.items() if group != "all"))
        print("all: all of these")
        return 0
    options = Options(
        arguments.runners, arguments.rounds, arguments.calibration, limit_s=arguments.limit, target=arguments.target
    )
    results: list[dict] = []
    no_chart = None
    for name in expand(arguments.networks):
        network = load_network(name, arguments.cache)
        for threads in arguments.threads:
            print(f"{network.name}, {threads} thread(s) ...", file=sys.stderr, flush=True)
            results.append(compare(network, threads, options))
            if arguments.output:  # after every network, so that an interrupted run leaves what it has
                no_chart = report.write(results, arguments.output)
    print(report.markdown(results))
    if no_chart:
        print(no_chart, file=sys.stderr)
    return 1 if report.failures(results) else 0


if __name__ == "__main__":
    sys.exit(main())
