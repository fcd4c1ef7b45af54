"""InsertQdq: the quantised network as quantize / dequantize pairs around what runs in INT8.

    conv2d(x, w)   ->   conv2d(dequantize(quantize(x)), dequantize(w_int8))

Requires   a canonical float module (after DenseToConv2d), and a range for every point of the plan.
Ensures    activations uint8 per tensor (asymmetric), or per channel where only depthwise convolutions read them;
           weights int8 symmetric, per output channel unless configured otherwise; biases stay float32 (their integers
           follow from the scales); tensors that only move keep the scale they had.
Method     Krishnamoorthi 2018 (arXiv:1806.08342); QDQ as in ONNX Runtime and TensorRT.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from tvm_int8.config import QuantizationConfig
from tvm_int8.quantization.calibration_table import CalibrationTable
from tvm_int8.quantization.weights import quantize_weight

from .dataflow import Dataflow, Rebuilder, rebuild
from .expressions import Expr, Var, const_value, constant, op_name, vars_in
from .quantization_plan import plan_quantization


@tvm.transform.module_pass(opt_level=0, name="InsertQdq")
class InsertQdq:
    """Quantise what the plan says, with the ranges of a calibration table."""

    def __init__(self, table: CalibrationTable, config: QuantizationConfig):
        self.table, self.config = table, config

    def transform_module(self, mod: tvm.IRModule, _ctx) -> tvm.IRModule:
        """Return the QDQ module."""
        flow = Dataflow(mod)
        plan = plan_quantization(flow, self.config)
        computing = {unit.group.anchor.var for unit in plan.units if unit.kind == "compute"}
        done: set[Var] = set()

        def pair(var: Var, new: Rebuilder) -> None:
            dtype, found, axis = self.config.activation_dtype, None, -1
            if var in plan.by_channel:
                found, axis = self.table.channel_scale_zero_point(var.name, dtype), 1
            if found is None:
                found, axis = self.table.scale_zero_point(plan.origin(var).name, dtype), -1
            arguments = constant(np.asarray(found[0], np.float32)), constant(np.asarray(found[1], np.uint8))
            quantized = relax.op.quantize(new.translate(var), *arguments, axis=axis, out_dtype=dtype)
            stored = new.emit(quantized, f"{var.name}_quantized")
            new.redirect(var, new.emit(relax.op.dequantize(stored, *arguments, axis=axis), f"{var.name}_dequantized"))
            done.add(var)

        def rewrite(binding, _value: Expr, new: Rebuilder) -> Expr | None:
            for var in vars_in(binding.value):
                if var in plan.quantized and var not in done:
                    pair(var, new)
            value = new.translate(binding.value)
            if binding.var not in computing:
                return value
            statistics = self.table.get(binding.value.args[0].name) if isinstance(binding.value.args[0], Var) else None
            return self._quantized(value, binding.var.name, statistics, new)

        return rebuild(mod, rewrite)

    def _quantized(self, call: relax.Call, name: str, data, new: Rebuilder) -> Expr:
        weight = const_value(call.args[1])
        axis = 1 if op_name(call) == "nn.conv2d_transpose" else 0
        per_channel = self.config.per_channel_weights
        quantized, scale = quantize_weight(weight, axis if per_channel else None, name, preserve_sums=True)
        dequantized = relax.op.dequantize(
            constant(quantized),
            constant(scale),
            constant(np.zeros(scale.shape, np.int8)),
            axis=axis if per_channel else -1,
        )
        integer = new.emit(dequantized, f"{name}_weight")
        call = relax.Call(call.op, [call.args[0], integer, *call.args[2:]], call.attrs, call.ty_args)
        if not self.config.bias_correction or data is None or data.channels is None:
            return call
        spread = [-1 if i == axis else 1 for i in range(weight.ndim)] if per_channel else []
        error = quantized.astype(np.float64) * scale.astype(np.float64).reshape(spread) - weight
        return relax.op.add(call, constant(-expected_error(call, error, np.asarray(data.channels.mean))))


def expected_error(call: relax.Call, error: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """What rounded weights add to a convolution's outputs on average, E[error * x], as float32 [1, O, 1, 1].

    Empirical bias correction: Nagel et al. 2019 (arXiv:1906.04721), section 4.2; borders, where taps see padding, are
    neglected.
    """
    groups = int(call.attrs.groups)
    if op_name(call) == "nn.conv2d_transpose":
        strides = [int(s) for s in call.attrs.strides]
        shift = np.einsum("gc,gco->go", mean.reshape(groups, -1), error.sum((2, 3)).reshape(groups, -1, error.shape[1]))
        shift = shift / np.prod(strides)  # each output meets one tap in strides[0] * strides[1]
    else:
        shift = np.einsum("gc,goc->go", mean.reshape(groups, -1), error.sum((2, 3)).reshape(groups, -1, error.shape[1]))
    return shift.reshape(1, -1, 1, 1).astype(np.float32)
