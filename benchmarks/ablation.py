"""What each technique of quantisation is worth on one network: added to a plain quantiser, and taken out of a full one.

    python -m benchmarks.ablation net.onnx --calibration calibration.npz --test test.npz
    python -m benchmarks.ablation net.onnx --calibration calibration.npz --test test.npz --labels labels.npy
    python -m benchmarks.ablation net.onnx --calibration calibration.npz --test test.npz --only equalization rounding

Inputs are files as `tvm-int8 calibrate` takes them; labels are one class per test input. Every row is a compilation of
its own, but for two that simulate the defaults with weights alone and with activations alone rounded. Judged are the
logits: a softmax at the end is left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import tvm_int8
from benchmarks import onnx_graph
from benchmarks.judge import Case, Result, add_files, judge
from tvm_int8.config import QuantizationConfig
from tvm_int8.frontend import load_model
from tvm_int8.quantization.calibrators import calibrator_names
from tvm_int8.quantization.quantize import quantize_network
from tvm_int8.quantization.simulated_network import SimulatedNetwork

PLAIN: Mapping[str, Any] = {
    "method": "minmax",
    "per_channel_weights": False,
    "per_channel_activations": False,
    "equalization": False,
    "weight_clipping": "none",
    "rounding": "nearest",
    "bias_correction": "none",
}
"""What the first post-training quantisers did."""

FULL: Mapping[str, Any] = {
    "method": "mse",
    "per_channel_weights": True,
    "per_channel_activations": True,
    "equalization": True,
    "weight_clipping": "mse",
    "rounding": "sums",
    "bias_correction": "empirical",
}

CHOICES: Mapping[str, tuple] = {
    "method": calibrator_names(),
    "per_channel_weights": (False, True),
    "per_channel_activations": (False, True),
    "equalization": (False, True),
    "weight_clipping": ("none", "mse"),
    "rounding": ("nearest", "sums", "learned"),
    "bias_correction": ("none", "analytic", "empirical"),
    "weight_bits": (8, 7),
}
"""Option to the values that are tried."""


@dataclass(frozen=True)
class Variant:
    """A row of the table: plain or full but for one option, or the defaults."""

    name: str
    config: QuantizationConfig


def variants(only: Sequence[str] = tuple(CHOICES)) -> Iterator[Variant]:
    """Plain, full and default, then every other value of the options `only` in the place of plain's and of full's."""
    bases = {"plain": PLAIN, "full": FULL}
    for base, options in bases.items():
        yield Variant(base, QuantizationConfig(**options))
    yield Variant("default", QuantizationConfig())
    for base, options in bases.items():
        for option in only:
            for value in CHOICES[option]:
                if value != options.get(option, getattr(QuantizationConfig(), option)):
                    name = f"{base}, {option}={value}"
                    yield Variant(name, QuantizationConfig(**{**options, option: value}))


class Judge:
    """Compiles variants of one network and compares their outputs with FP32's.

    Parameters
    ----------
    case : Case
    """

    def __init__(self, case: Case):
        self.model, self.calibration, self.test, self.labels = case.model, case.calibration, case.test, case.labels
        self.reference = self._outputs(None)

    def _outputs(self, config: QuantizationConfig | None) -> list[list[np.ndarray]]:
        """All outputs, one list per test batch."""
        calibration = None if config is None else self.calibration
        shapes = onnx_graph.input_shapes(self.model)
        module = tvm_int8.compile(
            self.model, calibration=calibration, quantization=config, input_shapes=shapes, progress=False
        )
        return [[np.array(value) for value in module.run(batch).values()] for batch in self.test]

    def fp32(self) -> Result:
        """The reference's own row."""
        return judge(self.reference, self.reference, self.labels)

    def __call__(self, variant: Variant) -> Result:
        """Judge a variant."""
        return judge(self.reference, self._outputs(variant.config), self.labels)

    def parts(self) -> Iterator[tuple[str, Result]]:
        """The defaults with only the weights rounded, and only the activations."""
        imported = load_model(self.model, onnx_graph.input_shapes(self.model))
        quantized = quantize_network(imported, self.calibration, QuantizationConfig(), progress=False)
        network = SimulatedNetwork(quantized.float_mod, quantized.quantizers)
        for name in quantized.quantizers.activations:
            network.set_activation(name, None)
        yield "default, weights alone", self._judge_simulated(network)
        network.apply(quantized.quantizers)
        for name in quantized.quantizers.weights:
            network.set_weight(name, None)
        yield "default, activations alone", self._judge_simulated(network)

    def _judge_simulated(self, network: SimulatedNetwork) -> Result:
        results = (network(batch) for batch in self.test)
        outputs = [[np.array(values[name]) for name in network.outputs] for values in results]
        return judge(self.reference, outputs, self.labels)


def row(name: str, result: Result) -> str:
    """A line of the Markdown table."""
    accuracy = "" if result.accuracy is None else f" {result.accuracy:.2%} |"
    return f"| {name} | {result.sqnr_db:.1f} | {result.equal_decisions:.2%} |{accuracy}"


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=(__doc__ or "").split("\n")[0])
    add_files(parser)
    parser.add_argument("--only", nargs="+", choices=list(CHOICES), default=list(CHOICES), help="options to vary")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, row by row."""
    arguments = _arguments(argv)
    judged = Judge(Case.read(arguments, arguments.count))
    columns = ["", "SQNR dB", "as FP32"] + ([] if arguments.labels is None else ["accuracy"])
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    print(row("FP32", judged.fp32()))
    for variant in variants(arguments.only):
        print(row(variant.name, judged(variant)), flush=True)
        if variant.name == "default":
            print(*(row(name, result) for name, result in judged.parts()), sep="\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
