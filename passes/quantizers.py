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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from tvm import relax

from tvm_int8.config import QuantizationConfig
from tvm_int8.errors import ConfigError
from tvm_int8.quantization.bias_correction import expected_error
from tvm_int8.quantization.bit_widths import WeightBits
from tvm_int8.quantization.calibration_table import CalibrationTable
from tvm_int8.quantization.channel_scales import Reader, channel_scales
from tvm_int8.quantization.few_bit_activations import narrowed, range_share
from tvm_int8.quantization.few_bits import MOST_BITS, quantize_few_bits
from tvm_int8.quantization.scale_zero_point import scale_zero_point
from tvm_int8.quantization.weight_levels import WeightLevels
from tvm_int8.quantization.weights import quantize_weight
from tvm_int8.quantization.winograd_quantizer import WinogradWay

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
    bits : int
        Only the lowest 2 ** bits integers of the type are used.
    """

    scale: np.ndarray
    zero_point: np.ndarray
    step: float = 1.0
    factor: np.ndarray | None = None
    dtype: str = "uint8"
    bits: int = 8

    @property
    def limits(self) -> tuple[int, int]:
        """The least and the largest integer."""
        least = int(np.iinfo(self.dtype).min)
        return least, least + 2**self.bits - 1

    @property
    def per_channel(self) -> bool:
        """Whether every channel has a scale of its own."""
        return self.scale.ndim == 1

    def rounded(self, values: np.ndarray) -> np.ndarray:
        """What the integers of real values [N, C, ...] stand for, float32."""
        spread = [1, -1, *[1] * (values.ndim - 2)] if self.per_channel else []
        scale, zero_point = self.scale.reshape(spread), self.zero_point.reshape(spread).astype(np.float32)
        integers = np.clip(np.rint(values / scale) + zero_point, *self.limits)
        return (integers - zero_point) * scale


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
    bits : int
        Of the channel that has fewest.
    lowest : int8, `scale`'s shape, optional
        Of few bits: the integer of each channel's lowest level; levels are two apart (`few_bits`). 0 for channels of
        more.
    channel_bits : tuple of int, one per scale, optional
        Where channels differ.
    """

    exact: np.ndarray
    values: np.ndarray
    scale: np.ndarray
    axis: int
    correction: np.ndarray | None = None
    bits: int = 8
    lowest: np.ndarray | None = None
    channel_bits: tuple[int, ...] | None = None

    @classmethod
    def mixed(cls, parts: Mapping[int, WeightQuantizer], bits: Sequence[int]) -> WeightQuantizer:
        """Every output channel from the part that has its bits: the same weight, rounded to each of these."""
        widths, one = np.array(bits), parts[bits[0]]
        spread = [-1 if i == one.axis else 1 for i in range(one.values.ndim)]
        values, scale, lowest = one.values.copy(), one.scale.copy(), np.zeros(len(widths), np.int8)
        correction = np.zeros(0) if one.correction is None else one.correction.copy()
        groups = correction.size // len(widths)  # a transposed convolution's groups share their channels' scales
        for width, part in parts.items():
            own = widths == width
            values = np.where(own.reshape(spread), part.values, values)
            scale = np.where(own, part.scale, scale)
            lowest = lowest if part.lowest is None else np.where(own, part.lowest, lowest)
            if part.correction is not None and one.correction is not None:
                correction = np.where(np.tile(own, groups).reshape(1, -1, 1, 1), part.correction, correction)
        return replace(
            one,
            values=values,
            scale=scale.astype(np.float32),
            correction=None if one.correction is None else correction.astype(np.float32),
            bits=min(bits),
            lowest=lowest.astype(np.int8) if min(bits) <= MOST_BITS else None,
            channel_bits=tuple(bits) if len(set(bits)) > 1 else None,
        )

    @property
    def levels(self) -> WeightLevels:
        """The integers that its output channels can be."""
        return WeightLevels.of(self.channel_bits or self.bits, self.lowest)

    @property
    def real(self) -> np.ndarray:
        """The float64 weight the integers are."""
        spread = [-1 if i == self.axis else 1 for i in range(self.values.ndim)] if self.scale.ndim else []
        return self.values.astype(np.float64) * self.scale.astype(np.float64).reshape(spread)


@dataclass
class Quantizers:
    """Of a whole network.

    Parameters
    ----------
    activations : by tensor
    weights : by convolution
    pixels : the images whose bytes are read, by tensor
    winograd : by convolution, the ways to compute it by tiles
    """

    activations: dict[str, ActivationQuantizer] = field(default_factory=dict)
    weights: dict[str, WeightQuantizer] = field(default_factory=dict)
    pixels: dict[str, Pixels] = field(default_factory=dict)
    winograd: dict[str, tuple[WinogradWay, ...]] = field(default_factory=dict)

    def divisor(self, call: relax.Call) -> np.ndarray | None:
        """What the channels of a convolution's data are divided by before it multiplies them, [C]; None for nothing."""
        data = call.args[0].name
        if data in self.pixels:
            return self.pixels[data].scale
        quantizer = self.activations.get(data)
        return None if quantizer is None or is_depthwise(call) else quantizer.factor


def choose_quantizers(
    flow: Dataflow,
    plan: QuantizationPlan,
    table: CalibrationTable,
    config: QuantizationConfig,
    means: Mapping[str, np.ndarray] | None = None,
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
    means : mapping, optional
        Tensor -> E[x] of its channels, [C], for bias correction; where there is none, what calibration observed.

    Raises
    ------
    CalibrationError
        When the table has no range for a tensor.
    """
    return QuantizerChoice(flow, plan, table, config, means).run()


class QuantizerChoice:
    """Makes quantisers one by one; parameters as for `choose_quantizers`."""

    def __init__(
        self,
        flow: Dataflow,
        plan: QuantizationPlan,
        table: CalibrationTable,
        config: QuantizationConfig,
        means: Mapping[str, np.ndarray] | None = None,
    ):
        self.flow, self.plan, self.table, self.config, self.means = flow, plan, table, config, means or {}
        self.computing = {unit.group.anchor.var: unit.layer for unit in plan.units if unit.kind == "compute"}
        self.deliverer = {unit.output: unit.layer for unit in plan.units}
        options = config.activation_dtype, config.activation_symmetric, config.plain_convolutions
        plan.source |= concat_scales(plan, table, *options)

    @property
    def layers(self) -> dict[str, str]:
        """What convolutions bind -> their layers' names, in the order of the network."""
        bound = [binding.var for binding in self.flow.bindings if binding.var in self.computing]
        return {var.name: self.computing[var] for var in bound}

    def run(self) -> Quantizers:
        """All of a network. Activations first: their factors go into weights."""
        found = Quantizers()
        for var in self.plan.quantized:
            if is_byte_image(self.flow.value(var)):
                continue
            pixels = self._pixels(var)
            if pixels is not None:
                found.pixels[var.name] = pixels
            else:
                found.activations[var.name] = self.channels(var) or self.tensor(var)
        for binding in self.flow.bindings:
            if binding.var in self.computing:
                found.weights[binding.var.name] = self.weight(binding, found)
        return found

    def _pixels(self, var: Var) -> Pixels | None:
        """The bytes of a normalised image, if all its readers can read them."""
        pixels, readers = pixels_of(self.flow, var), self.flow.consumers[var]
        if pixels is None or self.flow.is_output(var):
            return None
        can = all(reader.var in self.computing and reads_pixels(reader.value, var, pixels) for reader in readers)
        return pixels if can else None

    def tensor(self, var: Var) -> ActivationQuantizer:
        """One scale for a tensor."""
        dtype, origin = self.config.activation_dtype, self.plan.origin(var)
        if is_byte_image(self.flow.value(origin)):
            return ActivationQuantizer(np.float32(1.0).reshape(()), np.zeros((), np.int64), dtype=dtype)
        scale, zero_point = self.table.scale_zero_point(origin.name, dtype, self.config.activation_symmetric)
        quantizer = ActivationQuantizer(np.asarray(scale, np.float32), np.asarray(zero_point, np.int64), dtype=dtype)
        return self.with_bits(var, quantizer)

    def widest(self, var: Var) -> ActivationQuantizer:
        """One scale for all that calibration saw of a tensor, where that is known; else as `tensor`."""
        seen = self.table.get(self.plan.origin(var).name)
        if seen is None or seen.histogram is None:
            return self.tensor(var)
        dtype = self.config.activation_dtype
        scale, zero_point = scale_zero_point(*seen.histogram.ends, dtype, self.config.activation_symmetric)
        quantizer = ActivationQuantizer(np.asarray(scale, np.float32), np.asarray(zero_point, np.int64), dtype=dtype)
        return self.with_bits(var, quantizer)

    def with_bits(self, var: Var, quantizer: ActivationQuantizer, bits: int | None = None) -> ActivationQuantizer:
        """The quantiser of a tensor with as many bits as the options give, or with `bits`, made of that with 8."""
        origin = self.plan.origin(var)
        if bits is None:
            widths = self.config.bits
            bits = 8 if widths is None else widths.activation(origin.name, self.deliverer.get(origin, ""))
        if bits >= quantizer.bits:
            return quantizer
        share = range_share(self.table.get(origin.name), bits)
        scale, zero_point, ratio = narrowed(quantizer.scale, quantizer.zero_point, bits, share)
        kept = quantizer.bits if var in self.plan.moved else bits
        return replace(quantizer, scale=scale, zero_point=zero_point, step=quantizer.step * ratio, bits=kept)

    def channels(self, var: Var) -> ActivationQuantizer | None:
        """Scales of their own for the channels of a tensor, where that pays."""
        seen, config = self.table.get(var.name), self.config
        if var not in self.plan.by_channel or seen is None:
            return None
        readers = [_reader(binding.value, var) for binding in self.flow.consumers[var]]
        dtype, symmetric = config.activation_dtype, config.activation_symmetric
        own = channel_scales(seen, readers, dtype, config.per_channel_weights, symmetric)
        if own is None:
            return None
        return self.with_bits(var, ActivationQuantizer(own.scale, own.zero_point, own.step, own.factor, dtype))

    def weight(self, binding: relax.VarBinding, chosen: Quantizers, bits: WeightBits | None = None) -> WeightQuantizer:
        """The integers of a convolution that reads its data as `chosen` says, rounded without looking at data.

        `bits`: instead of those that the options give.
        """
        bits = bits or self.bits(binding.var)
        if isinstance(bits, int):
            return self._weight(binding, chosen, bits)
        self._check_channels(binding, bits)
        return WeightQuantizer.mixed({own: self._weight(binding, chosen, own) for own in set(bits)}, bits)

    def _check_channels(self, binding: relax.VarBinding, bits: Sequence[int]) -> None:
        """Raise if bits are not one per scale of a convolution's weight."""
        layer, shape = self.computing[binding.var], const_value(binding.value.args[1]).shape
        channels = shape[_output_axis(binding.value)] if self.config.per_channel_weights else 1
        if len(bits) != channels:
            expected = f"{channels}, one per scale of its weight"
            raise ConfigError(f"option 'bits', layer '{layer}'", f"{len(bits)} widths", expected, "allocate them anew")

    def _weight(self, binding: relax.VarBinding, chosen: Quantizers, bits: int) -> WeightQuantizer:
        call, name, config = binding.value, binding.var.name, self.config
        divisor = chosen.divisor(call)
        exact = const_value(call.args[1])
        if divisor is not None:
            exact = scaled_inputs(call, divisor)
        axis = _output_axis(call)
        channels = axis if config.per_channel_weights else None
        if bits <= MOST_BITS:
            exact = exact.astype(np.float32, copy=False)
            values, scale, lowest = quantize_few_bits(exact, channels, bits, self._importance(call, divisor))
            found = WeightQuantizer(exact, values, scale, axis, bits=bits, lowest=lowest)
        else:
            values, scale = quantize_weight(
                exact,
                channels,
                name,
                bits=bits,
                clipping=config.weight_clipping,
                rounding="nearest" if config.rounding == "nearest" else "sums",
                importance=None if config.weight_clipping == "none" else self._importance(call, divisor),
            )
            found = WeightQuantizer(exact, values, scale, axis, bits=bits)
        mean = self._mean(call, chosen)
        if config.bias_correction == "none" or mean is None:
            return found
        return replace(found, correction=-expected_error(call, found.real - exact, mean))

    def bits(self, var: Var) -> WeightBits:
        """Bits of the weights of the convolution that binds `var`, or of each output channel's."""
        most, widths = self.config.weight_bits, self.config.bits
        if widths is None:
            return most
        found = widths.weight(self.computing[var])
        return min(most, found) if isinstance(found, int) else tuple(min(most, own) for own in found)

    def _mean(self, call: relax.Call, chosen: Quantizers) -> np.ndarray | None:
        """The mean [C] of what a convolution multiplies its integers with; None where it is not known."""
        data = call.args[0].name
        mean, seen = self.means.get(data), self.table.get(data)
        if mean is None and seen is not None and seen.channels is not None:
            mean = np.asarray(seen.channels.mean)
        if mean is None:
            return None
        pixels, divisor = chosen.pixels.get(data), chosen.divisor(call)
        if pixels is not None:
            return pixels.mean(mean)
        return mean if divisor is None else mean / divisor

    def importance(self, call: relax.Call, chosen: Quantizers) -> np.ndarray | None:
        """The mean square of what each weight of a convolution meets, broadcastable to it; None: not known."""
        return self._importance(call, chosen.divisor(call))

    def _importance(self, call: relax.Call, divisor: np.ndarray | None) -> np.ndarray | None:
        """The mean square of what each weight meets, broadcastable to the weight; None where it is not known."""
        seen = self.table.get(call.args[0].name)
        if seen is None or seen.channels is None:
            return None
        power = np.asarray(seen.channels.mean_square)
        power = (power if divisor is None else power / divisor**2).astype(np.float32)
        if op_name(call) == "nn.conv2d_transpose":
            return power.reshape(-1, 1, 1, 1)
        groups, outputs = int(call.attrs.groups), shape_of(call)[1]
        return np.repeat(power.reshape(groups, -1), outputs // groups, axis=0)[..., None, None]


def _output_axis(call: relax.Call) -> int:
    """Of a convolution's weight."""
    return 1 if op_name(call) == "nn.conv2d_transpose" else 0


def _reader(call: relax.Call, var: Var) -> Reader:
    if op_name(call) in CONVOLUTIONS and call.args[0] == var:
        pads = op_name(call) != "nn.conv2d" or any(int(p) for p in call.attrs.padding)
        return Reader(incoming_weights(call), not is_depthwise(call), pads)
    return Reader(np.ones((shape_of(var)[1], 1, 1), np.float32), False)
