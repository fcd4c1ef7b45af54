"""Random against xgboost-guided search, over the trials, for one network.

    python -m benchmarks.tuning_curves resnet50 --target cascadelake --trials 384 --output docs/tuning.png

For every seed the network is tuned from nothing, once with each search; the logs stay in --work and are not measured
again. The quality of a search after n trials is the time of the network's convolutions and dense layers with the best
records among its first n, relative to the heuristic. A search may end before its trials are spent, where no workload
promises to save a thousandth of the time.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.ship_logs import workloads
from tvm_int8 import tune
from tvm_int8.target import parse_target
from tvm_int8.tuning.log_file import read_log
from tvm_int8.tuning.record import Record
from tvm_int8.tuning.search import METHODS
from tvm_int8.tuning.workload import Workload

ALONE = 1.3
"""What a workload counts, relative to its heuristic, until a search has found something by itself."""
COLOURS = {"xgboost": "#0072B2", "random": "#E69F00"}


def trials_of(path: Path) -> list[Record]:
    """Return a log's trials in the order in which they were made."""
    return [record for record in read_log(path).records if not record.final]


def network_curve(trials: Sequence[Record], network: Counter[Workload], start: float = 1.0) -> np.ndarray:
    """Return the network's time, relative to the heuristic, after each trial; float64 [trials].

    A workload counts `start` until something better has been found. More than 1 leaves the heuristic, a workload's
    first trial, out of account: that shows what a search finds by itself.
    """
    heuristic = {record.workload: record.heuristic_us for record in reversed(trials) if not record.error}
    given = {record.workload: record.point for record in reversed(trials)} if start > 1 else {}
    best = dict.fromkeys(heuristic, start)
    total = sum(network[w] * us for w, us in heuristic.items())
    curve, now = [], start * total
    for record in trials:
        counts = not record.error and given.get(record.workload) != record.point
        if counts and record.ratio < best[record.workload]:
            gained = best[record.workload] - record.ratio
            now -= network[record.workload] * heuristic[record.workload] * gained
            best[record.workload] = record.ratio
        curve.append(now / total)
    return np.array(curve)


def workload_curve(trials: Sequence[Record], workload: Workload) -> np.ndarray:
    """Return the best time of a workload so far, relative to the heuristic, after each of its trials."""
    ratios = [1.0 if record.error else record.ratio for record in trials if record.workload == workload]
    return np.minimum.accumulate(np.array(ratios))


def trials_needed(curve: np.ndarray, quality: float) -> int | None:
    """Return after how many trials a curve is as good as `quality`; None if it never is."""
    reached = np.flatnonzero(curve <= quality)
    return int(reached[0]) + 1 if len(reached) else None


def draw(logs: dict[str, list[list[Record]]], network: Counter[Workload], path: Path, title: str) -> None:
    """Draw three layers, those with the largest share of the time, and the whole network."""
    from matplotlib.figure import Figure

    first = logs["xgboost"][0]
    heuristic = {record.workload: record.heuristic_us for record in reversed(first) if not record.error}
    largest = sorted(heuristic, key=lambda w: -network[w] * heuristic[w])[:3]
    figure = Figure(figsize=(11, 7), dpi=110, layout="constrained")
    axes = figure.subplots(2, 2)
    for axis, workload in zip(axes.flat[:3], largest, strict=True):
        axis.set_title(str(workload), fontsize=9)
        for method, runs in logs.items():
            for i, run in enumerate(runs):
                curve = workload_curve(run, workload)
                axis.step(range(1, len(curve) + 1), curve, color=COLOURS[method], alpha=0.8, where="post",
                          label=method if i == 0 else None)  # fmt: skip
    axes.flat[3].set_title("whole network", fontsize=9)
    for method, runs in logs.items():
        for run in runs:
            curve = network_curve(run, network)
            axes.flat[3].plot(range(1, len(curve) + 1), curve, color=COLOURS[method], alpha=0.8)
    for axis in axes.flat:
        axis.set_xlabel("trials", fontsize=8)
        axis.set_ylabel("best time / heuristic", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    axes.flat[0].legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Tune, draw, and print how many trials each search takes."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tuning_curves", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("network", nargs="?", default="resnet50")
    parser.add_argument("--target", default="native")
    parser.add_argument("--trials", type=int, default=384)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("."), help="where the logs are kept")
    parser.add_argument("--output", type=Path, default=Path("tuning.png"))
    arguments = parser.parse_args(argv)
    resolved = parse_target(arguments.target)
    (network,) = workloads([arguments.network], replace(resolved.cpu, threads=1))
    logs: dict[str, list[list[Record]]] = {method: [] for method in METHODS}
    for seed in arguments.seeds:
        for method in METHODS:
            log = arguments.work / f"{arguments.network}-{method}-{seed}.jsonl"
            if not log.exists():
                options = {"search": method, "seed": seed, "num_threads": 1, "seeds": False}
                print(method, seed, tune([network], arguments.target, arguments.trials, log, **options))
            logs[method].append(trials_of(log))
    for start, what in ((1.0, "beside the heuristic"), (ALONE, "without it")):
        for seed, guided, random in zip(arguments.seeds, logs["xgboost"], logs["random"], strict=True):
            ours, other = network_curve(guided, network, start), network_curve(random, network, start)
            quality = other.min()
            needed, spent = trials_needed(ours, quality), trials_needed(other, quality)
            share = f"{needed / spent:.2f}x" if needed and spent else "never"
            print(
                f"{what}, seed {seed}: random reaches {quality:.4f} of the heuristic's time in {spent} trials, "
                f"xgboost in {needed} ({share}), and {ours.min():.4f} in {len(ours)}"
            )
    title = f"{arguments.network}, {resolved.mcpu}, one thread, seeds {', '.join(map(str, arguments.seeds))}"
    draw(logs, network, arguments.output, title)
    return 0


if __name__ == "__main__":
    sys.exit(main())
