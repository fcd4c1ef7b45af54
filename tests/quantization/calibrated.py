"""A network with all that quantises it, for tests of what improves quantisers; NumPy computes both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import tvm

from tests.numpy_calibration import NumpyNetwork
from tvm_int8 import pipeline
from tvm_int8.config import QuantizationConfig
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.quantization_plan import plan_quantization
from tvm_int8.passes.quantizers import QuantizerChoice, Quantizers
from tvm_int8.quantization import ranges
from tvm_int8.quantization.calibration_table import CalibrationTable
from tvm_int8.quantization.sqnr import sqnr_db
from tvm_int8.reference.network import run_network

Batches = Sequence[dict[str, np.ndarray]]


@dataclass
class Calibrated:
    """A canonical float module, its table, and the quantisers made of it."""

    mod: tvm.IRModule
    config: QuantizationConfig
    table: CalibrationTable
    choice: QuantizerChoice
    quantizers: Quantizers

    def float_outputs(self, batches: Batches) -> np.ndarray:
        """All outputs of the float network, one behind the other."""
        return outputs(self.mod, batches)

    def integer_outputs(self, batches: Batches, quantizers: Quantizers | None = None) -> np.ndarray:
        """The same of the integer network."""
        chosen = self.quantizers if quantizers is None else quantizers
        return outputs(pipeline.quantize(self.table, self.config, chosen)(self.mod), batches)

    def integer_db(self, batches: Batches, quantizers: Quantizers | None = None) -> float:
        """SQNR of the integer network's outputs."""
        return sqnr_db(self.float_outputs(batches), self.integer_outputs(batches, quantizers))


def calibrated(imported: tvm.IRModule, batches: Batches, **options) -> Calibrated:
    """Calibrate and choose quantisers, nothing learnt."""
    config = QuantizationConfig(**options)
    mod = pipeline.canonical_float()(imported)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranges, "LazyNetwork", NumpyNetwork)
        table = ranges.observe_ranges(mod, batches, config, False, True)
    return with_table(mod, table, config)


def with_table(mod: tvm.IRModule, table: CalibrationTable, config: QuantizationConfig) -> Calibrated:
    """Quantisers of other ranges."""
    flow = Dataflow(mod)
    choice = QuantizerChoice(flow, plan_quantization(flow, config), table, config)
    return Calibrated(mod, config, table, choice, choice.run())


def outputs(mod: tvm.IRModule, batches: Batches) -> np.ndarray:
    """What kernels compute, in NumPy: all outputs, one behind the other."""
    ordered = pipeline.order()(mod)
    return flat(array for batch in batches for array in run_network(ordered, *batch.values()))


def flat(arrays) -> np.ndarray:
    """Arrays one behind the other."""
    return np.concatenate([np.ravel(array) for array in arrays])
