"""INT8 compiler for convolutional networks on x86 CPUs, a plugin of Apache TVM.

Everything public is reachable from here. The parts are imported on first use, so `import tvm_int8` itself only checks
that the installed TVM is one that works.

>>> import tvm_int8
>>> module = tvm_int8.compile("net.onnx", calibration=inputs)           # doctest: +SKIP
>>> module.export("net.so")                                             # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tvm_int8._environment import check_tvm, find_mapped_packages
from tvm_int8._version import __version__
from tvm_int8.errors import (
    ArtifactError,
    CalibrationError,
    ConfigError,
    ModelError,
    TargetError,
    TvmInt8Error,
)

check_tvm()
find_mapped_packages()

if TYPE_CHECKING:
    from tvm_int8.allocation import allocate_bits
    from tvm_int8.analysis.analysis import Analysis
    from tvm_int8.analysis.analyze import analyze
    from tvm_int8.api import calibrate, compile, quantize
    from tvm_int8.bit_allocation import BitAllocation
    from tvm_int8.config import QuantizationConfig
    from tvm_int8.finetuning.finetune import FineTuned, finetune
    from tvm_int8.mixed_precision import MixedPrecision, mixed_precision
    from tvm_int8.quantization.calibration_table import CalibrationTable
    from tvm_int8.quantized_model import QuantizedModel
    from tvm_int8.runtime import CompiledModule, load
    from tvm_int8.tuning.options import TuningResult
    from tvm_int8.tuning.tune import tune
    from tvm_int8.tuning.workload import Workload

_LAZY = {
    "allocate_bits": "tvm_int8.allocation",
    "BitAllocation": "tvm_int8.bit_allocation",
    "Analysis": "tvm_int8.analysis.analysis",
    "analyze": "tvm_int8.analysis.analyze",
    "compile": "tvm_int8.api",
    "calibrate": "tvm_int8.api",
    "quantize": "tvm_int8.api",
    "CalibrationTable": "tvm_int8.quantization.calibration_table",
    "FineTuned": "tvm_int8.finetuning.finetune",
    "finetune": "tvm_int8.finetuning.finetune",
    "MixedPrecision": "tvm_int8.mixed_precision",
    "mixed_precision": "tvm_int8.mixed_precision",
    "QuantizationConfig": "tvm_int8.config",
    "QuantizedModel": "tvm_int8.quantized_model",
    "CompiledModule": "tvm_int8.runtime",
    "load": "tvm_int8.runtime",
    "TuningResult": "tvm_int8.tuning.options",
    "tune": "tvm_int8.tuning.tune",
    "Workload": "tvm_int8.tuning.workload",
}

__all__ = [
    "Analysis",
    "ArtifactError",
    "BitAllocation",
    "CalibrationError",
    "CalibrationTable",
    "CompiledModule",
    "ConfigError",
    "FineTuned",
    "MixedPrecision",
    "ModelError",
    "QuantizationConfig",
    "QuantizedModel",
    "TargetError",
    "TuningResult",
    "TvmInt8Error",
    "Workload",
    "__version__",
    "allocate_bits",
    "analyze",
    "calibrate",
    "compile",
    "finetune",
    "load",
    "mixed_precision",
    "quantize",
    "tune",
]


def __getattr__(name: str) -> Any:
    """Import the module that defines a public name the first time the name is used (PEP 562)."""
    if name not in _LAZY:
        raise AttributeError(f"module 'tvm_int8' has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
