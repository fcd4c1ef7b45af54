"""Direct, F(2,3), F(4x2,3), F(4,3), and what `auto` takes: time and accuracy, one line per network.

    python -m benchmarks.winograd_table resnet50 vgg19 --target cascadelake --threads 1
    python -m benchmarks.winograd_table net.onnx --calibration calibration.npy --test test.npy --labels labels.npy

In the columns of one tile every layer that can be tiled is computed so, in 8 bits, whatever would be faster. Times are
medians of interleaved runs, as ratios to the direct convolution in the same turn; SQNR is that of all outputs against
FP32. Of networks in files, with labels, decisions equal to FP32's and right ones follow. The networks of
`benchmarks.compare` have drawn weights: their SQNR compares columns, and says little about accuracy.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

import tvm_int8
from benchmarks import onnx_graph
from benchmarks.judge import Batches, Case, Result, judge
from benchmarks.networks import expand, load_network
from benchmarks.timing import interleave
from benchmarks.winograd_accuracy import classes
from tvm_int8 import QuantizationConfig
from tvm_int8.quantized_model import QuantizedModel

TILES = {"F(2,3)": (2, 2), "F(4x2,3)": (4, 2), "F(4,3)": (4, 4)}


def drawn(name: str) -> Case:
    """A network of `benchmarks.compare`."""
    network = load_network(name)
    model = onnx_graph.logits_model(network.model)
    (key,) = onnx_graph.input_shapes(model)
    calibration, test = ([{key: x} for x in network.inputs(count, seed)] for count, seed in ((4, 0), (3, 1)))
    return Case(name, model, calibration, test)


def variants(case: Case) -> dict[str, QuantizedModel]:
    """The columns: the same quantised network, with the ways that each may take."""
    table = tvm_int8.calibrate(case.model, case.calibration, progress=False)
    always = tvm_int8.quantize(case.model, table, QuantizationConfig(winograd="always"), progress=False)
    found = {"direct": replace(always, winograd={})}
    for column, tile in TILES.items():
        ways = {
            layer: [way for way in ways if way.tile == tile and not way.wide] for layer, ways in always.winograd.items()
        }
        found[column] = replace(always, winograd=ways)
    found["auto"] = tvm_int8.quantize(case.model, table, QuantizationConfig(), progress=False)
    return found


def print_row(case: Case, target: str, threads: int, rounds: int) -> None:
    """Compile, judge and time a network."""
    reference = _outputs(tvm_int8.compile(case.model, quantization=None, progress=False), case.test)
    modules = {
        column: tvm_int8.compile(quantized, target, num_threads=threads, progress=False)
        for column, quantized in variants(case).items()
    }
    first = list(case.test[0].values())
    times = interleave({column: functools.partial(module, *first) for column, module in modules.items()}, rounds)
    cells = [case.name, _tiles(modules["F(4,3)"]), f"{times['direct'].median_ms:.2f} ms"]
    for column, module in modules.items():
        decide = classes if case.labels is not None else None
        result = judge(reference, _outputs(module, case.test), case.labels, decide)
        ratio = "" if column == "direct" else f"{times['direct'].relative_to(times[column]):.2f}x, "
        chosen = f" ({_tiles(module)})" if column == "auto" else ""
        cells.append(ratio + _accuracy(result) + chosen)
    print("| " + " | ".join(cells) + " |", flush=True)


def _outputs(module, batches: Batches) -> list[list[np.ndarray]]:
    return [[value.copy() for value in module(*batch.values())] for batch in batches]


def _accuracy(result: Result) -> str:
    """For a cell."""
    shares = [f"{share:.1%}" for share in (result.equal_decisions, result.accuracy) if share is not None]
    return ", ".join([f"{result.sqnr_db:.1f} dB", *shares])


def _tiles(module) -> str:
    """Layers of integers that are computed by tiles, by their shape."""
    rows = [row for row in module.report if row.kernel.startswith("winograd") and row.precision == "int8"]
    counts = Counter(row.kernel.split("_")[1] for row in rows)
    return ", ".join(f"{count} {tile}" for tile, count in sorted(counts.items())) or "none"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, line by line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.winograd_table", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("networks", nargs="+", help="names, as for benchmarks.compare, or one .onnx file")
    parser.add_argument("--calibration", type=Path, help="of a file: .npz or .npy of inputs")
    parser.add_argument("--test", type=Path, help=".npz or .npy of other inputs")
    parser.add_argument("--labels", type=Path, help=".npy with the class of every test input")
    parser.add_argument("--count", type=int, default=256, help="batches of each file, at most (default 256)")
    parser.add_argument("--target", default="native")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args(argv)
    columns = ["network", "layers", "direct", "", *TILES, "auto"]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    if arguments.calibration and arguments.test:
        arguments.model = Path(arguments.networks[0])
        cases = iter([Case.read(arguments, arguments.count)])
    else:
        cases = map(drawn, expand(arguments.networks))
    for case in cases:
        print_row(case, arguments.target, arguments.threads, arguments.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
