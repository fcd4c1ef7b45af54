"""InsertQdq: the quantised network as quantize / dequantize pairs around what runs in INT8.

    conv2d(x, w)   ->   conv2d(dequantize(quantize(x)), dequantize(w_int8))

Requires   a canonical float module (after DenseToConv2d), and a range for every point of the plan, or quantisers.
Ensures    a pair wherever a tensor of the plan is read first, int8 weights; biases stay float32 (their integers follow
           from the scales).
           A convolution that mixes channels with scales of their own reads them with one step, and their factors are
           in its weights:  conv2d(dequantize(q, step, zero points), w * factor).
           Images of bytes are integers already: convolutions read them as they are (`byte_images`).
Method     QDQ as in ONNX Runtime and TensorRT; for the scales see `quantizers`.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from tvm_int8.config import QuantizationConfig
from tvm_int8.quantization.calibration_table import CalibrationTable

from .byte_images import Pixels
from .convolution_weights import is_depthwise
from .dataflow import Dataflow, Rebuilder, rebuild
from .expressions import Expr, Var, constant, shape_of, vars_in
from .quantization_plan import plan_quantization
from .quantizers import ActivationQuantizer, Quantizers, WeightQuantizer, choose_quantizers


@tvm.transform.module_pass(opt_level=0, name="InsertQdq")
class InsertQdq:
    """Quantise what the plan says, with the ranges of a calibration table, or with quantisers made of them."""

    def __init__(self, table: CalibrationTable, config: QuantizationConfig, quantizers: Quantizers | None = None):
        self.table, self.config, self.quantizers = table, config, quantizers

    def transform_module(self, mod: tvm.IRModule, _ctx) -> tvm.IRModule:
        """Return the QDQ module."""
        flow = Dataflow(mod)
        quantizers = self.quantizers
        if quantizers is None:
            quantizers = choose_quantizers(flow, plan_quantization(flow, self.config), self.table, self.config)
        pairs = _Pairs(quantizers)

        def rewrite(binding, _value: Expr, new: Rebuilder) -> Expr | None:
            for var in vars_in(binding.value):
                pairs.insert(var, new)
            weight = quantizers.weights.get(binding.var.name)
            if weight is None:
                return new.translate(binding.value)
            return pairs.convolution(binding.value, weight, binding.var.name, new)

        return rebuild(mod, rewrite)


class _Pairs:
    """Quantize and dequantize for every tensor that has a quantiser, written where it is read first."""

    def __init__(self, quantizers: Quantizers):
        self.quantizers = quantizers
        self.done: set[Var] = set()
        self.mixed: dict[Var, Expr] = {}  # what convolutions that mix channels read instead

    def insert(self, var: Var, new: Rebuilder) -> None:
        """Write the pair of a tensor unless it is there, or stays in float."""
        if var in self.done:
            return
        self.done.add(var)
        if var.name in self.quantizers.pixels:
            self._insert_pixels(var, self.quantizers.pixels[var.name], new)
        elif var.name in self.quantizers.activations:
            self._insert_pair(var, self.quantizers.activations[var.name], new)

    def _insert_pair(self, var: Var, quantizer: ActivationQuantizer, new: Rebuilder) -> None:
        axis = 1 if quantizer.per_channel else -1
        arguments = _arguments(quantizer.scale, quantizer.zero_point)
        value = new.translate(var)
        if quantizer.bits < 8:  # becomes the upper bound of what the kernel stores
            largest = constant(_largest(quantizer, shape_of(var)))
            value = new.emit(relax.op.minimum(value, largest), f"{var.name}_clamped")
        quantized = relax.op.quantize(value, *arguments, axis=axis, out_dtype=quantizer.dtype)
        stored = new.emit(quantized, f"{var.name}_quantized")
        new.redirect(var, new.emit(relax.op.dequantize(stored, *arguments, axis=axis), f"{var.name}_dequantized"))
        if quantizer.factor is not None:
            plain = _with_one_step(stored, quantizer.step, quantizer.zero_point)
            self.mixed[var] = new.emit(plain, f"{var.name}_divided")

    def _insert_pixels(self, var: Var, pixels: Pixels, new: Rebuilder) -> None:
        read = _with_one_step(new.translate(pixels.bytes), 1.0, pixels.zero_point)
        self.mixed[var] = new.emit(read, f"{var.name}_pixels")

    def convolution(self, call: relax.Call, weight: WeightQuantizer, name: str, new: Rebuilder) -> Expr:
        """A convolution of the float network with an INT8 weight; corrections of its result are added behind."""
        data, translated = call.args[0], new.translate(call)
        pixels = self.quantizers.pixels.get(data.name)
        reads_mixed = pixels is not None or (data in self.mixed and not is_depthwise(call))
        per_channel = weight.scale.ndim == 1
        integers = relax.op.dequantize(
            constant(weight.values),
            constant(weight.scale),
            constant(np.zeros(weight.scale.shape, np.int8)),
            axis=weight.axis if per_channel else -1,
        )
        operands = [self.mixed[data] if reads_mixed else translated.args[0], new.emit(integers, f"{name}_weight")]
        result: Expr = relax.Call(call.op, operands, call.attrs, call.ty_args)
        for shift in (weight.correction, None if pixels is None else pixels.shift(call)):
            if shift is not None:
                result = relax.op.add(result, constant(shift))
        return result


def _with_one_step(stored: Expr, step: float, zero_point: np.ndarray) -> Expr:
    """Integers with one scale for all channels, and a zero point for each where they differ."""
    if (zero_point == zero_point.flat[0]).all():
        return relax.op.dequantize(stored, *_arguments(step, zero_point.flat[0]), axis=-1)
    return relax.op.dequantize(stored, *_arguments(np.full(len(zero_point), step), zero_point), axis=1)


def _largest(quantizer: ActivationQuantizer, shape: tuple[int, ...]) -> np.ndarray:
    """What the largest integer stands for, float32 [1], or per channel [1, C, 1, 1]."""
    largest = (quantizer.limits[1] - quantizer.zero_point) * quantizer.scale.astype(np.float64)
    return largest.astype(np.float32).reshape([1, -1, *[1] * (len(shape) - 2)] if quantizer.per_channel else [1])


def _arguments(scale, zero_point) -> tuple[Expr, Expr]:
    return constant(np.asarray(scale, np.float32)), constant(np.asarray(zero_point, np.uint8))
