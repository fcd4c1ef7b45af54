"""The quantisers of a network: scale and zero point of every activation, integers and scales of every weight.

`choose_quantizers` makes them from calibrated ranges, without looking at data; `InsertQdq` writes them down.  What lies
in between may change them: learned rounding, bias correction, fewer bits.

Ensures    activations uint8, with one scale or, where that pays, one per channel (`channel_scales`); weights int8
           symmetric, per output channel unless configured otherwise; tensors that only move keep the scale they had,
           parts of a concatenation have its scale where that costs nothing (`concat_scales`).
           A convolution that mixes channels with scales of their own reads them with one step, and their factors are
           in its weights.  Images of bytes are integers already (`byte_images`).
Method     Krishnamoorthi 2018 (arXiv:1806.08342).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from tvm import relax

from tvm_int8.config import QuantizationConfig
from tvm_int8.quantization.bias_correction import expected_error
from tvm_int8.quantization.calibration_table import CalibrationTable
from tvm_int8.quantization.channel_scales import ChannelScales, Reader, channel_scales
from tvm_int8.quantization.weights import quantize_weight

from .byte_images import Pixels, pixels_of, reads_pixels
from .byte_inputs import is_byte_image
from .concat_scales import concat_scales
from .convolution_weights import incoming_weights, is_depthwise, scaled_inputs
from .dataflow import Dataflow
from .expressions import Var, const_value, op_name, shape_of
from .groups import CONVOLUTIONS
from .quantization_plan import QuantizationPlan


@dataclass(frozen=True)
class ActivationQuantizer:
    """real = scale * (q - zero_point).

    Parameters
    ----------
    scale, zero_point : float32 and int64, [] or [C]
    step : float
        What convolutions that mix channels multiply q - zero_point by, where there is a factor.
    factor : float64 [C], optional
        scale = step * factor; in the weights of convolutions that mix channels.
    dtype : str
    """

    scale: np.ndarray
    zero_point: np.ndarray
    step: float = 1.0
    factor: np.ndarray | None = None
    dtype: str = "uint8"

    @property
    def per_channel(self) -> bool:
        """Whether every channel has a scale of its own."""
        return self.scale.ndim == 1


@dataclass(frozen=True)
class WeightQuantizer:
    """weight = scale * values, what a convolution reads its data with.

    Parameters
    ----------
    exact : float32, the weight as it lies
        What `values` stand for, with the factors of the data's channels.
    values : int8
    scale : float32, [] or [O]
    axis : int
        The output channels'.
    correction : float32 [1, O, 1, 1], optional
        Added to what the convolution delivers: what rounding the weights adds on average, taken out.
    """

    exact: np.ndarray
    values: np.ndarray
    scale: np.ndarray
    axis: int
    correction: np.ndarray | None = None

    @property
    def real(self) -> np.ndarray:
        """The float64 weight the integers are."""
        spread = [-1 if i == self.axis else 1 for i in range(self.values.ndim)] if self.scale.ndim else []
        return self.values.astype(np.float64) * self.scale.astype(np.float64).reshape(spread)


@dataclass
class Quantizers:
    """Of a whole network: activations by tensor, weights by convolution, and the images whose bytes are read."""

    activations: dict[str, ActivationQuantizer] = field(default_factory=dict)
    weights: dict[str, WeightQuantizer] = field(default_factory=dict)
    pixels: dict[str, Pixels] = field(default_factory=dict)


def choose_quantizers(
    flow: Dataflow, plan: QuantizationPlan, table: CalibrationTable, config: QuantizationConfig
) -> Quantizers:
    """Make the quantisers of what the plan wants as integers.

    Parameters
    ----------
    flow : Dataflow
        Of the canonical float module.
    plan : QuantizationPlan
        Its `source` is extended by the tensors that take a concatenation's scale.
    table : CalibrationTable
    config : QuantizationConfig

    Raises
    ------
    CalibrationError
        When the table has no range for a tensor.
    """
    return _Choice(flow, plan, table, config).run()


class _Choice:
    def __init__(self, flow: Dataflow, plan: QuantizationPlan, table: CalibrationTable, config: QuantizationConfig):
        self.flow, self.plan, self.table, self.config = flow, plan, table, config
        self.computing = {unit.group.anchor.var for unit in plan.units if unit.kind == "compute"}
        self.found = Quantizers()

    def run(self) -> Quantizers:
        """Activations first: their factors go into weights."""
        config = self.config
        self.plan.source |= concat_scales(self.plan, self.table, config.activation_dtype, config.activation_symmetric)
        for var in self.plan.quantized:
            if is_byte_image(self.flow.value(var)):
                continue
            pixels = self._pixels(var)
            if pixels is not None:
                self.found.pixels[var.name] = pixels
            else:
                self.found.activations[var.name] = self._activation(var)
        for binding in self.flow.bindings:
            if binding.var in self.computing:
                self.found.weights[binding.var.name] = self._weight(binding.value, binding.var.name)
        return self.found

    def _pixels(self, var: Var) -> Pixels | None:
        """The bytes of a normalised image, if all its readers can read them."""
        pixels, readers = pixels_of(self.flow, var), self.flow.consumers[var]
        if pixels is None or self.flow.is_output(var):
            return None
        can = all(reader.var in self.computing and reads_pixels(reader.value, var, pixels) for reader in readers)
        return pixels if can else None

    def _activation(self, var: Var) -> ActivationQuantizer:
        dtype, own = self.config.activation_dtype, self._channel_scales(var)
        if own is not None:
            return ActivationQuantizer(own.scale, own.zero_point, own.step, own.factor, dtype)
        origin = self.plan.origin(var)
        if is_byte_image(self.flow.value(origin)):
            return ActivationQuantizer(np.float32(1.0).reshape(()), np.zeros((), np.int64), dtype=dtype)
        scale, zero_point = self.table.scale_zero_point(origin.name, dtype, self.config.activation_symmetric)
        return ActivationQuantizer(np.asarray(scale, np.float32), np.asarray(zero_point, np.int64), dtype=dtype)

    def _channel_scales(self, var: Var) -> ChannelScales | None:
        seen = self.table.get(var.name)
        if var not in self.plan.by_channel or seen is None:
            return None
        readers = [_reader(binding.value, var) for binding in self.flow.consumers[var]]
        config = self.config
        return channel_scales(
            seen, readers, config.activation_dtype, config.per_channel_weights, config.activation_symmetric
        )

    def _weight(self, call: relax.Call, name: str) -> WeightQuantizer:
        exact, mean = self._weight_and_mean(call)
        axis = 1 if op_name(call) == "nn.conv2d_transpose" else 0
        per_channel = self.config.per_channel_weights
        values, scale = quantize_weight(exact, axis if per_channel else None, name, rounding="sums")
        found = WeightQuantizer(exact, values, scale, axis)
        if self.config.bias_correction == "none" or mean is None:
            return found
        correction = -expected_error(call, found.real - exact, mean)
        return WeightQuantizer(exact, values, scale, axis, correction)

    def _weight_and_mean(self, call: relax.Call) -> tuple[np.ndarray, np.ndarray | None]:
        """The float weight a convolution reads its integers with, and the mean [C] of these less their zero points.

        The mean, in units of the step, is None where calibration did not look at single channels.
        """
        data, weight = call.args[0], const_value(call.args[1])
        seen = self.table.get(data.name) if isinstance(data, Var) else None
        mean = None if seen is None or seen.channels is None else np.asarray(seen.channels.mean)
        pixels = self.found.pixels.get(data.name)
        if pixels is not None:
            return pixels.weight(call), None if mean is None else pixels.mean(mean)
        quantizer = self.found.activations.get(data.name)
        if quantizer is None or quantizer.factor is None or is_depthwise(call):
            return weight, mean
        return scaled_inputs(call, quantizer.factor), None if mean is None else mean / quantizer.factor


def _reader(call: relax.Call, var: Var) -> Reader:
    if op_name(call) in CONVOLUTIONS and call.args[0] == var:
        pads = op_name(call) != "nn.conv2d" or any(int(p) for p in call.attrs.padding)
        return Reader(incoming_weights(call), not is_depthwise(call), pads)
    return Reader(np.ones((shape_of(var)[1], 1, 1), np.float32), False)
