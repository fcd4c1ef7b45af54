"""Accuracy against size, for bits allocated in several ways: equal, the paper's closed form, greedy, optimal.

    python -m benchmarks.bit_widths net.onnx --calibration calibration.npy --test test.npy --labels labels.npy
    python -m benchmarks.bit_widths net.onnx --calibration c.npy --test t.npy --average 2 2.5 3 --json all.json
    python -m benchmarks.bit_widths net.onnx --calibration c.npy --test t.npy --widths 3 4 5 --average 4 --exhaustive
    python -m benchmarks.bit_widths --plot docs/bit_widths.png resnet8.json resnet20.json

The network is calibrated and measured once; every choice of widths is then simulated (`SimulatedNetwork`: what integers
compute, but for the rounding of float32 sums) on the test inputs. Judged are the logits: a softmax at the end is left
out. Size is that of the weights, packed; activations have 8 bits. The last lines say how small each way can be made
within `--points` of FP32's accuracy, and how often bits that measure more SQNR are also more accurate. `--per-channel`
adds layers whose bits are shared among their output channels. `--plot` draws what earlier runs wrote with `--json`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from benchmarks import bit_widths_chart, onnx_graph
from benchmarks.judge import Case, Result, add_files, judge
from tvm_int8 import api
from tvm_int8.config import QuantizationConfig
from tvm_int8.quantization.bit_allocator import BitAllocator
from tvm_int8.quantization.bit_prediction import BitPrediction
from tvm_int8.quantization.bit_search import BitSearch, items_of
from tvm_int8.quantization.bit_widths import BitWidths
from tvm_int8.quantization.layer_noise import NoiseByBits
from tvm_int8.quantization.output_noise import decibels

AVERAGES = (2.0, 2.2, 2.4, 2.6, 2.8, 3.0, 3.2, 3.6, 4.0, 4.4, 4.8, 5.0, 6.0, 7.0, 8.0)
WAYS = (
    ("equal", "sensitivity"),
    ("closed_form", "sqnr"),
    ("closed_form", "sensitivity"),
    ("greedy", "sensitivity"),
    ("optimal", "sqnr"),
    ("optimal", "sensitivity"),
)
"""Method and weighting."""
PER_CHANNEL = "optimal, per channel"


@dataclass(frozen=True)
class Point:
    """One choice of widths.

    Attributes
    ----------
    way : str
        Method, and weighting where that is not sensitivity.
    average_bits, size_bytes : float
        Of the weights.
    predicted_db, measured_db, test_db : float
        SQNR of the outputs: foretold from noises of layers, and of the network that is compiled, both on calibration
        inputs; and on the test's.
    accuracy, equal_decisions : float or None
        On the test inputs, in [0, 1].
    seconds : float
        What choosing took, measurements of choices among it; not those of layers.
    bits : str
        A digit per layer; averages over channels where these differ.
    """

    way: str
    average_bits: float
    size_bytes: float
    predicted_db: float
    measured_db: float
    test_db: float
    accuracy: float | None
    equal_decisions: float | None
    seconds: float
    bits: str


class Sweep:
    """One network, measured; allocated and judged as often as wanted.

    Parameters
    ----------
    case : Case
    widths : sequence of int
        What layers can have.
    """

    def __init__(self, case: Case, widths: Sequence[int]):
        self.test, self.labels = case.test, case.labels
        config, inputs = (
            QuantizationConfig(bits=BitWidths()),
            api.Inputs(onnx_graph.input_shapes(case.model), None, None, None),
        )
        quantized, _ = api.quantize_for_measuring(case.model, case.calibration, config, inputs, progress=False)
        start = time.perf_counter()
        self.allocator = BitAllocator(quantized, widths, progress=False)
        self.noises: list[NoiseByBits] = self.allocator.weight_noise()
        self.prediction = BitPrediction(self.allocator, self.noises)
        self.seconds = time.perf_counter() - start
        self.channel_seconds = 0.0
        self.count = sum(noise.count for noise in self.noises)
        self.allocator.network.apply(None)
        self.reference = self._outputs()

    @cached_property
    def shared(self) -> list[NoiseByBits]:
        """Layers with their bits shared among output channels."""
        start = time.perf_counter()
        found = [own.shared(noise) for own, noise in zip(self.allocator.channel_noise(), self.noises, strict=True)]
        self.channel_seconds = time.perf_counter() - start
        return found

    def _outputs(self) -> list[list[np.ndarray]]:
        network = self.allocator.network
        found = (network(batch) for batch in self.test)
        return [[np.array(values[name]) for name in network.outputs] for values in found]

    def fp32(self) -> Result:
        """The reference's own accuracy."""
        return judge(self.reference, self.reference, self.labels)

    def point(self, method: str, weighting: str, average: float, per_channel: bool = False) -> Point | None:
        """Allocate and judge; None where nothing fits."""
        noises = self.shared if per_channel else self.noises
        search = BitSearch(self.allocator, items_of(noises, weighting), progress=False)
        start = time.perf_counter()
        found = search.within(method, average * self.count)
        seconds = time.perf_counter() - start
        if found is None:
            return None
        chosen = [item.widths(bits) for item, bits in zip(search.items, found.widths, strict=True)]
        self.allocator.network.apply(self.allocator.rounded_in_order(chosen))
        result = judge(self.reference, self._outputs(), self.labels)
        bits, predicted = search.bits(found), self.prediction(search.base, noises, found.widths)
        way = method if weighting == "sensitivity" else f"{method} ({weighting})"
        return Point(
            PER_CHANNEL if per_channel else way,
            bits / self.count,
            bits / 8,
            predicted,
            decibels(found.measured),
            result.sqnr_db,
            result.accuracy,
            result.equal_decisions,
            seconds,
            " ".join(f"{b:.2f}" for b in found.widths) if per_channel else "".join(f"{b:.0f}" for b in found.widths),
        )

    def points(self, averages: Sequence[float], exhaustive: bool, per_channel: bool = False) -> Iterator[Point]:
        """All ways at all averages; equal bits at whole ones only."""
        ways = [(*way, False) for way in WAYS]
        ways += [("exhaustive", "sensitivity", False)] if exhaustive else []
        ways += [("optimal", "sensitivity", True)] if per_channel else []
        for average in averages:
            for method, weighting, shared in ways:
                if method != "equal" or average == int(average):
                    point = self.point(method, weighting, average, shared)
                    if point is not None:
                        yield point


def smallest(points: Sequence[Point], least_accuracy: float) -> dict[str, Point]:
    """Way to its smallest point that is accurate enough."""
    found: dict[str, Point] = {}
    for point in sorted(points, key=lambda p: p.size_bytes):
        if point.accuracy is not None and point.accuracy >= least_accuracy:
            found.setdefault(point.way, point)
    return found


def rank_correlation(points: Sequence[Point]) -> float:
    """Spearman's, of SQNR measured on calibration inputs and accuracy on the test's."""
    return bit_widths_chart.rank_correlation([(p.measured_db, p.accuracy or 0.0) for p in points])


def row(point: Point) -> str:
    """A line of the Markdown table."""
    decibel = f"{point.predicted_db:.1f} | {point.measured_db:.1f} | {point.test_db:.1f}"
    accuracy = "" if point.accuracy is None else f"{point.accuracy:.2%}"
    size = f"{point.average_bits:.2f} | {point.size_bytes / 1024:.1f}"
    return f"| {point.way} | {size} | {decibel} | {accuracy} | {point.seconds:.1f} | `{point.bits}` |"


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bit_widths", description=(__doc__ or "").split("\n")[0])
    add_files(parser)
    parser.add_argument("--per-channel", action="store_true", help="also share layers' bits among output channels")
    parser.add_argument("--average", type=float, nargs="+", default=AVERAGES, help="bits per weight to allocate")
    parser.add_argument("--widths", type=int, nargs="+", default=tuple(range(1, 9)), help="bits that layers can have")
    parser.add_argument("--points", type=float, default=0.5, help="of accuracy that may be lost (default 0.5)")
    parser.add_argument("--exhaustive", action="store_true", help="all combinations of --widths, too")
    parser.add_argument("--json", type=Path, help="file to write all points to")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table of one network, or draw what is in files."""
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] == ["--plot"]:
        bit_widths_chart.write(Path(given[1]), [json.loads(Path(path).read_text()) for path in given[2:]])
        return 0
    arguments = _arguments(argv)
    case = Case.read(arguments)
    sweep = Sweep(case, arguments.widths)
    fp32 = sweep.fp32()
    accuracy = "" if fp32.accuracy is None else f", FP32 {fp32.accuracy:.2%}"
    print(f"{case.name}: {sweep.count} weights, layers measured in {sweep.seconds:.1f} s{accuracy}\n")
    columns = ["", "bits", "KiB", "predicted dB", "measured dB", "test dB", "accuracy", "s", "bits per layer"]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    points = []
    for point in sweep.points(arguments.average, arguments.exhaustive, arguments.per_channel):
        points.append(point)
        print(row(point), flush=True)
    if arguments.json is not None:
        document = {"network": case.name, "fp32": fp32.accuracy, "points": [asdict(p) for p in points]}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    if fp32.accuracy is not None:
        best = smallest(points, fp32.accuracy - arguments.points / 100 - 1e-9)
        for way, point in best.items():
            saved = ""
            if "equal" in best:
                saved = f": {1 - point.size_bytes / best['equal'].size_bytes:.0%} smaller than equal bits"
            print(f"\n{way}: {point.average_bits:.2f} bits within {arguments.points} points{saved}")
        print(f"\nchannels measured in {sweep.channel_seconds:.1f} s")
        print(f"\nrank correlation of SQNR and accuracy: {rank_correlation(points):.2f} ({len(points)} choices)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
