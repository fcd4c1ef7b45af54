"""Tuned against untuned, whole networks: the same calibration, outputs equal bit for bit, runs interleaved.

    python -m benchmarks.tuning_gain light --target cascadelake --threads 1 --rounds 15
    python -m benchmarks.tuning_gain resnet50 --log mine.jsonl

`all` and the other groups are those of `benchmarks.compare`.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

import tvm_int8
from benchmarks import onnx_graph
from benchmarks.networks import expand, load_network
from benchmarks.timing import interleave


def gain(name: str, target: str, threads: int, logs: object, rounds: int) -> dict:
    """Compile a network with and without records, compare outputs, time both.

    Returns
    -------
    dict
        ``network``, ``tuned`` (text like "48/53"), ``heuristic_ms``, ``tuned_ms`` (medians), ``speedup`` (median over
        pairs of runs).
    """
    network = load_network(name)
    model = onnx_graph.logits_model(network.model)
    table = tvm_int8.calibrate(model, network.inputs(2, 0), progress=False)
    options: dict[str, Any] = {"target": target, "calibration": table, "num_threads": threads, "progress": False}
    untuned = tvm_int8.compile(model, tuning_logs=None, **options)
    tuned = tvm_int8.compile(model, tuning_logs=logs, **options)
    (x,) = network.inputs(1, 1)
    for expected, found in zip(untuned(x), tuned(x), strict=True):
        np.testing.assert_array_equal(found, expected)
    times = interleave({"untuned": lambda: untuned(x), "tuned": lambda: tuned(x)}, rounds)
    before, after = times["untuned"].median_ms, times["tuned"].median_ms
    speedup = times["untuned"].relative_to(times["tuned"])
    counts = tuned.report.summary.split("tuned ")[1].split(";")[0]
    return {"network": name, "tuned": counts, "heuristic_ms": before, "tuned_ms": after, "speedup": speedup}


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table; the exit code is 1 if a network is slower than 0.98 x untuned."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tuning_gain", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("networks", nargs="+")
    parser.add_argument("--target", default="native")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--log", help="by default the shipped logs")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args(argv)
    print("| network | tuned | heuristic ms | tuned ms | speed-up |\n|---|---|---:|---:|---:|")
    found = []
    for name in expand(arguments.networks):
        row = gain(name, arguments.target, arguments.threads, arguments.log or "shipped", arguments.rounds)
        found.append(row["speedup"])
        times = f"{row['heuristic_ms']:.2f} | {row['tuned_ms']:.2f} | {row['speedup']:.3f}x"
        print(f"| {name} | {row['tuned']} | {times} |", flush=True)
    mean = math.exp(sum(map(math.log, found)) / len(found))
    print(f"\ngeometric mean {mean:.3f}x, least {min(found):.3f}x")
    return int(min(found) < 0.98)


if __name__ == "__main__":
    sys.exit(main())
