"""What computing 3x3 convolutions by tiles costs in accuracy: tiles, widths, ranges, on one network.

    python -m benchmarks.winograd_accuracy net.onnx --calibration calibration.npz --test test.npz
    python -m benchmarks.winograd_accuracy net.onnx --calibration c.npz --test t.npz --labels labels.npy --only rule

Every eligible convolution is computed in the same way, by the compiled kernels, whatever would be faster; outputs are
compared with FP32's. Products are those of INT8, of all eligible convolutions, relative to the direct convolution; one
of 16 bits counts two. Inputs are files as `tvm-int8 calibrate` takes them. A softmax at the end is left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax

from benchmarks import onnx_graph
from benchmarks.judge import Case, Result, add_files, judge
from tvm_int8 import winograd
from tvm_int8.build import lower_and_build
from tvm_int8.config import QuantizationConfig
from tvm_int8.frontend import load_model
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.order_kernels import layer_name
from tvm_int8.passes.order_winograd import OrderWinograd
from tvm_int8.quantization.float_network import FloatNetwork
from tvm_int8.quantization.quantize import quantize_network
from tvm_int8.quantization.transformed_statistics import (
    TILES,
    Tile,
    TileStatistics,
    TransformedObserver,
    TransformedStatistics,
)
from tvm_int8.quantization.winograd_choice import LARGEST, TiledLayer, tiled_layers, tiled_reads
from tvm_int8.quantization.winograd_noise import Ranges, data_ranges
from tvm_int8.quantization.winograd_quantizer import WinogradWay
from tvm_int8.target import parse_target

LIMITS_DB = (3.0, 6.0, 8.0, 10.0)


def _reach(seen: TileStatistics) -> np.ndarray:
    """What each channel reaches at each position, [positions, C]."""
    return np.maximum(-seen.low, seen.high)


def _loudest(seen: TileStatistics) -> np.ndarray:
    return np.broadcast_to(_reach(seen).max(1, keepdims=True), seen.high.shape)


RULES: Mapping[str, Ranges] = {
    "one range for all": lambda seen: np.broadcast_to(_reach(seen).max(), seen.high.shape),
    "one per position": _loudest,
    "one per position and channel": _reach,
}
"""How far transformed data are taken to reach, relative to each other, in the place of `data_ranges`."""

Choose = Callable[[TiledLayer], WinogradWay]


@dataclass(frozen=True)
class Variant:
    """A row of the table: how every eligible layer is computed; None for directly."""

    kind: str
    name: str
    choose: Choose | None


class Study:
    """A network quantised once, compiled anew for every variant.

    Parameters
    ----------
    case : Case
    """

    def __init__(self, case: Case):
        imported = load_model(case.model, onnx_graph.input_shapes(case.model))
        self.test, self.labels = case.test, case.labels
        self.quantized = quantize_network(imported, case.calibration, QuantizationConfig(winograd="off"), False)
        self.flow = Dataflow(self.quantized.float_mod)
        self.layers = tiled_layers(self.flow, self.quantized.quantizers)
        self.seen = self._observe(case.calibration)
        self.reference = self._outputs(self.quantized.float_mod, {})
        self._qdq = self.quantized.mod()

    def _observe(self, batches: Sequence) -> dict[str, TransformedStatistics]:
        """Statistics by tensor."""
        calls = {binding.var.name: binding.value for binding in self.flow.bindings}
        reads = tiled_reads(calls[name] for name in self.layers)
        observers = {name: TransformedObserver(pads) for name, pads in reads.items()}
        network = FloatNetwork(self.quantized.float_mod, list(reads))
        for batch in batches:
            tensors = network(batch)
            for name, observer in observers.items():
                observer.update(tensors[name])
        return {name: observer.statistics() for name, observer in observers.items()}

    def _outputs(self, mod: tvm.IRModule, ways: Mapping[str, Sequence]) -> list[list[np.ndarray]]:
        target = parse_target("native")
        tiles = OrderWinograd(ways, lambda _: 1) if ways else None
        executable, _, _ = lower_and_build(mod, target.tvm_target, target.cpu, tiles=tiles)
        machine = relax.VirtualMachine(executable, tvm.cpu())
        names, found = [str(name) for name in mod["main"].attrs["input_names"]], []
        for batch in self.test:
            result = machine["main"](*(tvm.runtime.tensor(np.ascontiguousarray(batch[name])) for name in names))
            results = [result] if hasattr(result, "shape") else list(result)
            found.append([value.numpy() for value in results])
        return found

    def variants(self, only: Sequence[str]) -> Iterator[Variant]:
        """All rows of these kinds, behind the direct convolution."""
        every = tuple(range(winograd.positions(LARGEST)))
        yield Variant("direct", "direct", None)
        found = [Variant("tile", "16 bits", self._fixed(LARGEST, every))]
        found += [Variant("tile", f"8 bits, {tile[0]}x{tile[1]}", self._fixed(tile, ())) for tile in TILES]
        found += [
            Variant("limit", f"{tile[0]}x{tile[1]}, loss up to {limit:g} dB", self._within(tile, limit))
            for limit in LIMITS_DB
            for tile in TILES
        ]
        found += [
            Variant("rule", f"8 bits, {tile[0]}x{tile[1]}, {name}", self._fixed(tile, (), rule))
            for tile in TILES
            for name, rule in RULES.items()
        ]
        yield from (variant for variant in found if variant.kind in only)

    def _fixed(self, tile: Tile, wide: tuple[int, ...], rule: Ranges = data_ranges) -> Choose:
        def choose(layer: TiledLayer) -> WinogradWay:
            seen = self.seen[layer.data].divided(layer.divisor)
            unknown_db = 0.0  # nobody asks
            return WinogradWay(tile, wide, unknown_db, lambda: layer.quantizer(tile, wide, seen, rule))

        return choose

    def _within(self, tile: Tile, limit: float) -> Choose:
        def choose(layer: TiledLayer) -> WinogradWay:
            seen = self.seen[layer.data].divided(layer.divisor)
            noise = layer.noise(tile, seen)
            wide = noise.fewest_wide(limit)
            return layer.way(tile, wide, seen, noise.loss_db(wide))

        return choose

    def __call__(self, variant: Variant) -> tuple[Result, float, float]:
        """Judge a variant; and say what share of products it has, and how many positions of 16 bits per layer."""
        chosen = {} if variant.choose is None else {name: variant.choose(x) for name, x in self.layers.items()}
        variables = {var.name: var for var in self.flow.producer}
        ways = {layer_name(self.flow, variables[name]): (way,) for name, way in chosen.items()}
        result = judge(self.reference, self._outputs(self._qdq, ways), self.labels, classes)
        if not chosen:
            return result, 1.0, 0.0
        shares = [(winograd.positions(w.tile) + len(w.wide)) / (9 * np.prod(w.tile)) for w in chosen.values()]
        return result, float(np.mean(shares)), float(np.mean([len(way.wide) for way in chosen.values()]))


def classes(outputs: Sequence[np.ndarray]) -> np.ndarray:
    """The class of every image, or of every pixel where the first output is a map of them."""
    return outputs[0].argmax(1).ravel()


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    description = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.winograd_accuracy", description=description)
    add_files(parser)
    kinds = ("limit", "tile", "rule")
    parser.add_argument("--only", nargs="+", choices=kinds, default=list(kinds), help="rows")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, row by row."""
    arguments = _arguments(argv)
    study = Study(Case.read(arguments, arguments.count))
    columns = ["", "products", "wide", "SQNR dB", "as FP32"] + ([] if arguments.labels is None else ["accuracy"])
    print(f"{len(study.layers)} layers\n\n| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for variant in study.variants(arguments.only):
        result, products, wide = study(variant)
        accuracy = "" if result.accuracy is None else f" {result.accuracy:.2%} |"
        row = f"| {variant.name} | {products:.2f} | {wide:.1f} | {result.sqnr_db:.1f} | {result.equal_decisions:.2%} |"
        print(row + accuracy, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
