"""What `tvm_int8.quantize` returns: a network between calibration and code."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import onnx
import tvm

from tvm_int8.atomic_file import write_atomically
from tvm_int8.config import QuantizationConfig
from tvm_int8.errors import ModelError
from tvm_int8.onnx_export import export_onnx
from tvm_int8.quantization.calibration_table import CalibrationTable
from tvm_int8.quantization.winograd_quantizer import WinogradWay

if TYPE_CHECKING:
    from tvm_int8.passes.quantizers import Quantizers
    from tvm_int8.quantization.ranges import Reference


@dataclass(frozen=True, eq=False)
class QuantizedModel:
    """A network as quantize / dequantize pairs around what runs in INT8; `tvm_int8.compile` takes it as its model.

    Attributes
    ----------
    mod : tvm.IRModule
        The QDQ module (Relax); the float one where `config` is None.
    float_mod : tvm.IRModule
        The canonical module in front of quantisation; `mod` itself for a network that came quantised.
    config : QuantizationConfig or None
        The options it was quantised with; None: not quantised.
    table : CalibrationTable or None
        The ranges; None where there are none, because the network came quantised or is not.
    notes : dict
        Where the ranges came from, and what the inputs are: part of a compiled module's metadata.
    reference : Reference or None
        What the report's SQNR compares with.
    winograd : dict
        Layer -> ways to compute it by tiles.
    quantizers : Quantizers or None
        What it was quantised with; None for a network that came quantised or is not.
    """

    mod: tvm.IRModule = field(repr=False)
    float_mod: tvm.IRModule = field(repr=False)
    config: QuantizationConfig | None
    table: CalibrationTable | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    reference: Reference | None = field(default=None, repr=False)
    winograd: Mapping[str, Sequence[WinogradWay]] = field(default_factory=dict, repr=False)
    quantizers: Quantizers | None = field(default=None, repr=False)

    def to_onnx(self, path: str | os.PathLike[str] | None = None) -> onnx.ModelProto:
        """Write the network as ONNX with QuantizeLinear and DequantizeLinear, for any runtime.

        Inputs, outputs and layers have the names they had in the user's model. Weights are int8, biases int32 wherever
        the kernels add integers. `compile` makes the same module of the result as of this object. `path` holds the old
        content or the new, never a part.

        Parameters
        ----------
        path : path, optional
            The ``.onnx`` file to write.

        Returns
        -------
        onnx.ModelProto

        Raises
        ------
        ModelError
            A layer has no ONNX form, or the file cannot be written.
        """
        model = export_onnx(self.mod)
        if path is not None:
            try:
                write_atomically(path, model.SerializeToString())
            except OSError as error:
                found = f"cannot be written ({error.strerror or error})"
                action = "choose a path in an existing, writable directory"
                raise ModelError(os.fspath(path), found, "", action) from error
        return model
