"""AbsorbHighBiases: what every input adds to a channel in front of a ReLU moves into the next layer's bias.

before   conv2d(x, W1) -> add(b1)     -> relu -> conv2d(., W2)
after    conv2d(x, W1) -> add(b1 - c) -> relu -> conv2d(., W2) -> add(W2 c)        c = max(0, beta - 3 gamma)

relu(x) = relu(x - c) + c as long as x > c, which holds for all but one in 700 values of a channel that a batch norm
left with mean beta and standard deviation gamma. One scale for all channels then need not reach to the highest of them.

Requires   a canonical float module, and the imported one that still has its batch norms.
Ensures    the same function but for those values; tensors with shifted channels have new names (`equalized_tensors`).
           The next layer may have two additions behind it: FoldScaleShift makes them one.
Not        readers that pad (the border would see W2 c of data that is not there), activations that bend above zero.
Source     Nagel et al. 2019, *Data-Free Quantization Through Weight Equalization and Bias Correction*
           (arXiv:1906.04721), section 4.1.3.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tvm
from tvm import relax

from .batch_norm_outputs import BatchNormOutput, batch_norm_outputs
from .dataflow import Dataflow, Rebuilder, rebuild
from .equalized_tensors import equalized, equalized_name, with_equalized_tensors
from .expressions import Expr, Var, constant, dtype_of, op_name, shape_of, vars_in
from .groups import is_view
from .linear_layers import layer_weight, response_to_shift
from .scale_regions import Region, channel_constant, scale_regions

DEVIATIONS = 3.0
NEGLIGIBLE = 1e-3  # relative to the mean
_RECTIFIERS = ("nn.relu", "nn.leakyrelu", "nn.prelu")


@tvm.transform.module_pass(opt_level=0, name="AbsorbHighBiases")
class AbsorbHighBiases:
    """Move constant parts of activations into the biases behind them."""

    def __init__(self, imported: tvm.IRModule):
        self.imported = imported

    def transform_module(self, mod: tvm.IRModule, _ctx) -> tvm.IRModule:
        """Return the module with lower biases; the module itself where none is high."""
        known = batch_norm_outputs(self.imported, mod)
        flow = Dataflow(mod)
        shifts: dict[Var, np.ndarray] = {}  # tensor -> what is taken from its channels
        responses: dict[Var, np.ndarray] = {}  # layer -> what is to be added to its outputs
        for region in scale_regions(flow):
            shift = _high_bias(region, known)
            if shift is None:
                continue
            moved = [_response(reader.value, shift) for reader in region.readers]
            if any(response is None for response in moved):
                continue
            shifts |= {binding.var: shift for binding in region.between}
            responses |= {reader.var: response for reader, response in zip(region.readers, moved, strict=True)}
        if not shifts:
            return mod
        entries = {equalized_name(var.name): equalized(mod, var.name).then(1.0, c) for var, c in shifts.items()}
        return with_equalized_tensors(rebuild(mod, _writer(shifts, responses)), entries)


def _high_bias(region: Region, known: Mapping[str, BatchNormOutput]) -> np.ndarray | None:
    """What can be taken from each channel of a region, float64 [C]; None for nothing."""
    if not region.between:
        return None
    bias, *others = region.between
    stats = known.get(bias.var.name)
    if stats is None or op_name(bias.value) != "add" or not bias.value.args[0].same_as(region.layer.var):
        return None
    if any(region.layer.var in set(vars_in(binding.value)) for binding in others):
        return None
    if not all(_lets_shifts_through(binding.value) for binding in others):
        return None
    excess = stats.mean - DEVIATIONS * stats.std
    shift = np.where(excess > NEGLIGIBLE * np.abs(stats.mean), excess, 0.0)
    return shift if shift.any() else None


def _lets_shifts_through(call: Expr) -> bool:
    """Whether f(x - c) = f(x) - c where x > c > 0."""
    name = op_name(call)
    if name == "nn.avg_pool2d":
        return not any(int(pad) for pad in call.attrs.padding)
    return name in (*_RECTIFIERS, "nn.max_pool2d", "nn.adaptive_avg_pool2d") or is_view(call)


def _response(call: relax.Call, shift: np.ndarray) -> np.ndarray | None:
    weight = layer_weight(call)
    assert weight is not None, "regions have constant weights"
    return response_to_shift(call, weight, shift)


def _writer(shifts: Mapping[Var, np.ndarray], responses: Mapping[Var, np.ndarray]):
    def rewrite(binding: relax.VarBinding, value: Expr, new: Rebuilder) -> Expr | None:
        var = binding.var
        if var in responses:
            value = relax.op.add(value, _column(responses[var], value))
        if var not in shifts:
            return value
        if op_name(value) == "add":
            value = relax.op.add(value.args[0], _column(channel_constant(value) - shifts[var], value))
        name = equalized_name(var.name)
        return value if name == var.name else new.emit(value, name)

    return rewrite


def _column(values: np.ndarray, like: Expr) -> Expr:
    return constant(values.reshape(1, -1, *[1] * (len(shape_of(like)) - 2)), dtype_of(like))
