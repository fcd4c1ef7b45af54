"""EqualizeLayers: scale moves between consecutive layers until their channels span similar ranges.

before   conv2d(x, W1) -> add(b) -> relu -> conv2d(., W2)
after    conv2d(x, W1 / s) -> add(b / s) -> relu -> conv2d(., W2 * s)        s[c] per channel in between

before   ... -> clip(., 0, 6) -> conv2d
after    ... -> relu -> minimum(., 6 / s[1,C,1,1]) -> conv2d

A channel with small weights in front and large ones behind wastes bits on either side where one scale serves a whole
weight. With ranges r1 and r2 (largest magnitudes of the channel's weights in front and behind), s = sqrt(r1 * r2) / r2
makes both sqrt(r1 * r2). Layers belong to two pairs, one on either side, so this is repeated until nothing moves.

Requires   a canonical float module (after DenseToConv2d).
Ensures    the same function up to rounding. Tensors whose channels were scaled have new names
           (`equalized_tensors`), because ranges calibrated without equalisation are not theirs.
           Channels that are all but zero on one side, as weight decay leaves them, carry little but their bias, which
           would outgrow all others: they are scaled only as far as their other side would set a whole weight's range.
Not        across what `scale_regions` does not cover: residual additions, concatenations.
Source     Nagel et al. 2019, *Data-Free Quantization Through Weight Equalization and Bias Correction*
           (arXiv:1906.04721), section 4.1.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from .convolution_weights import incoming_weights
from .dataflow import Dataflow, Rebuilder, rebuild
from .equalized_tensors import equalized, equalized_name, with_equalized_tensors
from .expressions import Expr, Var, constant, dtype_of, op_name, shape_of
from .linear_layers import layer_weight, scale_inputs, scale_outputs, with_weight
from .scale_regions import BOUNDS, Region, channel_constant, clip_bounds, scale_regions

ROUNDS = 20
NEGLIGIBLE = 0.1  # of the logarithm of a scale, a seventh of a bit: the last bit of the way can take hundreds of rounds
LEAST_RANGE = 1 / 254  # of the widest channel's: half a step, if one scale serves the weight


@tvm.transform.module_pass(opt_level=0, name="EqualizeLayers")
class EqualizeLayers:
    """Cross-layer equalisation."""

    def transform_module(self, mod: tvm.IRModule, _ctx) -> tvm.IRModule:
        """Return the equalised module; the module itself where there is nothing to equalise."""
        regions = scale_regions(Dataflow(mod))
        scales = equalizing_scales(regions)
        regions = [region for region in regions if region.layer.var in scales]
        if not regions:
            return mod
        writer = _Writer(regions, scales)
        entries = {
            equalized_name(var.name): equalized(mod, var.name).then(scale, 0.0) for var, scale in writer.tensors.items()
        }
        return with_equalized_tensors(rebuild(mod, writer.rewrite), entries)


def equalizing_scales(regions: list[Region]) -> dict[Var, np.ndarray]:
    """Layer -> what its output channels are to be divided by, float64 [O]; only layers where that is worth while."""
    layers = {binding.var: _Layer(binding.value) for r in regions for binding in (r.layer, *r.readers)}
    scales: dict[Var, np.ndarray] = {}
    for _ in range(ROUNDS):
        settled = True
        for region in regions:
            layer, readers = layers[region.layer.var], [layers[binding.var] for binding in region.readers]
            front, behind = layer.output_ranges(), np.max([reader.input_ranges() for reader in readers], axis=0)
            step = _balance(front, behind)
            if np.abs(np.log(step)).max() < NEGLIGIBLE:
                continue
            settled = False
            scales[region.layer.var] = scales.get(region.layer.var, 1.0) * step
            layer.outputs = layer.outputs / step
            for reader in readers:
                reader.inputs = reader.inputs * step
        if settled:
            break
    return scales


def _balance(front: np.ndarray, behind: np.ndarray) -> np.ndarray:
    """sqrt(front * behind) / behind per channel, which makes both the root of their product.

    Channels whose product, which no scale changes, is negligible are scaled only so that neither range stands out.
    """
    product = front * behind
    widest = np.sqrt(product.max())
    alive = product > (LEAST_RANGE * widest) ** 2
    step = np.maximum(front / widest, 1.0) / np.maximum(behind / widest, 1.0) if widest > 0 else np.ones_like(front)
    return np.where(alive, np.sqrt(np.divide(front, behind, out=np.ones_like(front), where=alive)), step)


class _Layer:
    """Largest magnitudes of a convolution's kernels, and what its outputs and inputs were multiplied by so far."""

    def __init__(self, call: relax.Call):
        groups = int(call.attrs.groups)
        largest = np.abs(incoming_weights(call)).max(2).astype(np.float64)  # [I, O / groups]
        self.magnitude = largest.reshape(groups, -1, largest.shape[1])
        self.outputs, self.inputs = np.ones(groups * largest.shape[1]), np.ones(len(largest))

    def output_ranges(self) -> np.ndarray:
        """Largest weight of every output channel, [O]."""
        scaled = self.magnitude * self.inputs.reshape(*self.magnitude.shape[:2], 1)
        return scaled.max(1).reshape(-1) * self.outputs

    def input_ranges(self) -> np.ndarray:
        """Largest weight that meets every input channel, [I]."""
        scaled = self.magnitude * self.outputs.reshape(len(self.magnitude), 1, -1)
        return scaled.max(2).reshape(-1) * self.inputs


class _Writer:
    """Writes the scales into weights and constants."""

    def __init__(self, regions: list[Region], scales: dict[Var, np.ndarray]):
        self.outputs = {region.layer.var: scales[region.layer.var] for region in regions}
        self.inputs = {reader.var: self.outputs[r.layer.var] for r in regions for reader in r.readers}
        self.tensors = {var: self.outputs[region.layer.var] for region in regions for var in region.tensors}

    def rewrite(self, binding: relax.VarBinding, value: Expr, new: Rebuilder) -> Expr | None:
        """The callback of `rebuild`."""
        var = binding.var
        if var in self.outputs or var in self.inputs:
            value = self._layer(value, var)
        elif var in self.tensors:
            value = _with_scaled_constants(value, self.tensors[var])
        name = equalized_name(var.name)
        return new.emit(value, name) if var in self.tensors and name != var.name else value

    def _layer(self, call: relax.Call, var: Var) -> relax.Call:
        weight = layer_weight(call)
        assert weight is not None, "regions have constant weights"
        if var in self.outputs:
            weight = scale_outputs(call, weight, 1 / self.outputs[var])
        if var in self.inputs:
            weight = scale_inputs(call, weight, self.inputs[var])
        return with_weight(call, weight)


def _with_scaled_constants(call: relax.Call, scale: np.ndarray) -> Expr:
    """An operator between layers, on data divided by `scale`, so that its result is divided by it, too."""
    shape, dtype = shape_of(call), dtype_of(call)

    def column(values: np.ndarray) -> Expr:
        return constant((values / scale).reshape(1, -1, *[1] * (len(shape) - 2)), dtype)

    if op_name(call) in ("add", *BOUNDS):
        return relax.Call(call.op, [call.args[0], column(channel_constant(call))], call.attrs, call.ty_args)
    if op_name(call) != "clip":
        return call
    low, high = clip_bounds(call)
    data = call.args[0]
    if low == 0:
        data = relax.op.nn.relu(data)
    elif low > -np.inf:
        data = relax.op.maximum(data, column(np.full_like(scale, low)))
    return data if high == np.inf else relax.op.minimum(data, column(np.full_like(scale, high)))
