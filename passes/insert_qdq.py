"""InsertQdq: the quantised network as quantize / dequantize pairs around what runs in INT8.

    conv2d(x, w)   ->   conv2d(dequantize(quantize(x)), dequantize(w_int8))

Requires   a canonical float module (after DenseToConv2d), and a range for every point of the plan.
Ensures    activations uint8 (asymmetric), with one scale or, where that pays, one per channel (`channel_scales`);
           weights int8 symmetric, per output channel unless configured otherwise; biases stay float32 (their integers
           follow from the scales); tensors that only move keep the scale they had, parts of a concatenation have its
           scale where that costs nothing (`concat_scales`).
           A convolution that mixes channels with scales of their own reads them with one step, and their factors are
           in its weights:  conv2d(dequantize(q, step, zero points), w * factor).
           Images of bytes are integers already: convolutions read them as they are (`byte_images`).
Method     Krishnamoorthi 2018 (arXiv:1806.08342); QDQ as in ONNX Runtime and TensorRT.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from tvm_int8.config import QuantizationConfig
from tvm_int8.quantization.calibration_table import CalibrationTable
from tvm_int8.quantization.channel_scales import ChannelScales, Reader, channel_scales
from tvm_int8.quantization.weights import quantize_weight

from .byte_images import Pixels, pixels_of, reads_pixels
from .byte_inputs import is_byte_image
from .concat_scales import concat_scales
from .convolution_weights import incoming_weights, is_depthwise, scaled_inputs
from .dataflow import Dataflow, Rebuilder, rebuild
from .expressions import Expr, Var, const_value, constant, op_name, shape_of, vars_in
from .groups import CONVOLUTIONS
from .quantization_plan import QuantizationPlan, plan_quantization


@tvm.transform.module_pass(opt_level=0, name="InsertQdq")
class InsertQdq:
    """Quantise what the plan says, with the ranges of a calibration table."""

    def __init__(self, table: CalibrationTable, config: QuantizationConfig):
        self.table, self.config = table, config

    def transform_module(self, mod: tvm.IRModule, _ctx) -> tvm.IRModule:
        """Return the QDQ module."""
        flow = Dataflow(mod)
        plan = plan_quantization(flow, self.config)
        plan.source |= concat_scales(plan, self.table, self.config.activation_dtype)
        computing = {unit.group.anchor.var for unit in plan.units if unit.kind == "compute"}
        pairs = _Pairs(self.table, self.config, flow, plan, computing)

        def rewrite(binding, _value: Expr, new: Rebuilder) -> Expr | None:
            for var in vars_in(binding.value):
                pairs.insert(var, new)
            if binding.var not in computing:
                return new.translate(binding.value)
            call, mean = pairs.convolution(binding.value, new)
            quantized = self._quantized(call, binding.var.name, mean, new)
            shift = pairs.shift(binding.value)
            return quantized if shift is None else relax.op.add(quantized, constant(shift))

        return rebuild(mod, rewrite)

    def _quantized(self, call: relax.Call, name: str, mean: np.ndarray | None, new: Rebuilder) -> Expr:
        """`call` with an INT8 weight; the mean error of rounding it taken out behind, if the data's mean is known."""
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
        call = _with_arguments(call, call.args[0], integer)
        if not self.config.bias_correction or mean is None:
            return call
        spread = [-1 if i == axis else 1 for i in range(weight.ndim)] if per_channel else []
        error = quantized.astype(np.float64) * scale.astype(np.float64).reshape(spread) - weight
        return relax.op.add(call, constant(-expected_error(call, error, mean)))


class _Pairs:
    """Quantize and dequantize for every tensor of the plan, written where it is read first."""

    def __init__(
        self,
        table: CalibrationTable,
        config: QuantizationConfig,
        flow: Dataflow,
        plan: QuantizationPlan,
        computing: set[Var],
    ):
        self.table, self.config, self.flow, self.plan, self.computing = table, config, flow, plan, computing
        self.done: set[Var] = set()
        self.scales: dict[Var, ChannelScales] = {}
        self.mixed: dict[Var, Expr] = {}  # what convolutions that mix channels read instead
        self.pixels: dict[Var, Pixels] = {}  # images whose bytes convolutions read

    def insert(self, var: Var, new: Rebuilder) -> None:
        """Write the pair of a tensor unless it is there, or stays in float."""
        if var in self.done or var not in self.plan.quantized:
            return
        self.done.add(var)
        if is_byte_image(self.flow.value(var)) or self._insert_pixels(var, new):
            return
        own = self._channel_scales(var)
        if own is None:
            axis, arguments = -1, _arguments(*self._scale_zero_point(self.plan.origin(var)))
        else:
            self.scales[var], axis = own, 1
            arguments = _arguments(own.scale, own.zero_point)
        quantized = relax.op.quantize(new.translate(var), *arguments, axis=axis, out_dtype=self.config.activation_dtype)
        stored = new.emit(quantized, f"{var.name}_quantized")
        new.redirect(var, new.emit(relax.op.dequantize(stored, *arguments, axis=axis), f"{var.name}_dequantized"))
        if own is not None and own.factor is not None:
            if (own.zero_point == own.zero_point[0]).all():
                plain = relax.op.dequantize(stored, *_arguments(own.step, own.zero_point[0]), axis=-1)
            else:
                steps = np.full(len(own.scale), own.step)
                plain = relax.op.dequantize(stored, *_arguments(steps, own.zero_point), axis=1)
            self.mixed[var] = new.emit(plain, f"{var.name}_divided")

    def _scale_zero_point(self, origin: Var) -> tuple[float, int]:
        if is_byte_image(self.flow.value(origin)):
            return 1.0, 0
        scale, zero_point = self.table.scale_zero_point(origin.name, self.config.activation_dtype)
        return float(scale), zero_point

    def _insert_pixels(self, var: Var, new: Rebuilder) -> bool:
        """Let the readers of a normalised image of bytes read these, if they all can."""
        pixels, readers = pixels_of(self.flow, var), self.flow.consumers[var]
        if pixels is None or self.flow.is_output(var):
            return False
        if not all(reader.var in self.computing and reads_pixels(reader.value, var, pixels) for reader in readers):
            return False
        stored, zero_point = new.translate(pixels.bytes), pixels.zero_point
        if (zero_point == zero_point[0]).all():
            read = relax.op.dequantize(stored, *_arguments(1.0, zero_point[0]), axis=-1)
        else:
            read = relax.op.dequantize(stored, *_arguments(np.ones(len(zero_point)), zero_point), axis=1)
        self.pixels[var] = pixels
        self.mixed[var] = new.emit(read, f"{var.name}_pixels")
        return True

    def shift(self, call: relax.Call) -> np.ndarray | None:
        """What is to be added to a convolution that reads bytes, float32 [1, O, 1, 1]."""
        pixels = self.pixels.get(call.args[0])
        return None if pixels is None else pixels.shift(call)

    def convolution(self, call: relax.Call, new: Rebuilder) -> tuple[relax.Call, np.ndarray | None]:
        """A convolution of the float network as the quantised one has it, its weight still float; and its data's mean.

        The mean, [C], is None where calibration did not look at single channels.
        """
        data, translated = call.args[0], new.translate(call)
        seen = self.table.get(data.name) if isinstance(data, Var) else None
        mean = None if seen is None or seen.channels is None else np.asarray(seen.channels.mean)
        pixels = self.pixels.get(data)
        if pixels is not None:
            mean = None if mean is None else pixels.mean(mean)
            return _with_arguments(translated, self.mixed[data], constant(pixels.weight(call))), mean
        if data not in self.mixed or is_depthwise(call):
            return translated, mean
        factor = self.scales[data].factor
        return _with_arguments(translated, self.mixed[data], constant(scaled_inputs(call, factor))), mean / factor

    def _channel_scales(self, var: Var) -> ChannelScales | None:
        seen = self.table.get(var.name)
        if var not in self.plan.by_channel or seen is None:
            return None
        readers = [_reader(binding.value, var) for binding in self.flow.consumers[var]]
        return channel_scales(seen, readers, self.config.activation_dtype, self.config.per_channel_weights)


def _reader(call: relax.Call, var: Var) -> Reader:
    if op_name(call) in CONVOLUTIONS and call.args[0] == var:
        pads = op_name(call) != "nn.conv2d" or any(int(p) for p in call.attrs.padding)
        return Reader(incoming_weights(call), not is_depthwise(call), pads)
    return Reader(np.ones((shape_of(var)[1], 1, 1), np.float32), False)


def _arguments(scale, zero_point) -> tuple[Expr, Expr]:
    return constant(np.asarray(scale, np.float32)), constant(np.asarray(zero_point, np.uint8))


def _with_arguments(call: relax.Call, data: Expr, weight: Expr) -> relax.Call:
    return relax.Call(call.op, [data, weight, *call.args[2:]], call.attrs, call.ty_args)


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
