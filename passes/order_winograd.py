"""OrderWinograd: convolutions that are faster by tiles become orders of Winograd convolutions.

    tvm_int8.kernel(q, w, bias; Conv2d 3x3)  ->  tvm_int8.kernel(q, transformed weights, scales, bias; WinogradConv2d)

Integers can be ordered in the ways that calibration found, by layer.  float32 can take any tile.

Requires   OrderKernels.
Ensures    module attribute `NOTES` says of every layer that could be tiled what became of it.
Method     Shen et al. 2018; Li et al. 2021 (LoWino).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace

import numpy as np
import tvm
from tvm import relax

from tvm_int8 import winograd
from tvm_int8.kernel_op import constants_of, inputs_of, is_kernel, kernel_call, spec_of, stored_of, tensor_of
from tvm_int8.quantization.winograd_quantizer import WinogradQuantizer, WinogradWay
from tvm_int8.specs import LANES, Conv2d, Operand, WinogradConv2d

from .dataflow import Dataflow, Rebuilder, rebuild
from .expressions import Expr
from .order_kernels import layer_name

Ways = Mapping[str, Sequence[WinogradWay]]
Fastest = Callable[[Sequence[Conv2d]], int]
NOTES = "tvm_int8.winograd"
FLOAT_TILES = ((4, 4), (2, 2))


@tvm.transform.module_pass(opt_level=0, name="OrderWinograd")
class OrderWinograd:
    """Order by tiles what `fastest` finds faster so.

    Parameters
    ----------
    ways : layer -> ways to compute it
        Of convolutions of integers; those without are direct.
    fastest : callable
        Takes the orders that compute the same layer, the direct one first; returns the index of one.
    """

    def __init__(self, ways: Ways, fastest: Fastest):
        self.ways, self.fastest = ways, fastest

    def transform_module(self, mod: tvm.IRModule, _ctx) -> tvm.IRModule:
        """Return the module with other orders."""
        notes: dict[str, str] = {}

        def rewrite(binding, value: Expr, _new: Rebuilder) -> Expr | None:
            if not is_kernel(value) or not can_be_tiled(spec_of(value)):
                return None
            return self._chosen(value, notes)

        out = rebuild(mod, rewrite)
        return out.with_attr(NOTES, notes) if notes else out

    def _chosen(self, call: relax.Call, notes: dict[str, str]) -> Expr | None:
        spec = spec_of(call)
        assert isinstance(spec, Conv2d)
        constants = dict(constants_of(call))
        if spec.inputs[0].dtype == "float32":
            orders = [winograd_spec(spec, tile) for tile in FLOAT_TILES]
            index = self.fastest([spec, *orders]) - 1
            return None if index < 0 else _float_order(call, orders[index], constants["weight"])
        found = self.ways.get(spec.layer, ())
        if not found:
            return None
        index = self.fastest([spec, *(winograd_spec(spec, way.tile, way.wide) for way in found)]) - 1
        notes[spec.layer] = "direct: faster here" if index < 0 else str(found[index])
        return None if index < 0 else _integer_order(call, spec, found[index].quantize(), constants)


def by_layer(flow: Dataflow, ways: Ways) -> dict[str, Sequence[WinogradWay]]:
    """Convolution -> ways as layer -> ways; names that several convolutions have are left out."""
    names = [layer_name(flow, binding.var) for binding in flow.bindings if binding.var.name in ways]
    named = {layer_name(flow, b.var): ways[b.var.name] for b in flow.bindings if b.var.name in ways}
    return {name: found for name, found in named.items() if names.count(name) == 1}


def can_be_tiled(spec) -> bool:
    """Whether a kernel is a convolution that Winograd's algorithm computes, and has channels to fill vectors with."""
    return (
        type(spec) is Conv2d
        and (spec.kernel, spec.strides, spec.dilation) == ((3, 3), (1, 1), (1, 1))
        and spec.groups == 1
        and not spec.transposed
        and spec.pad_value is not None
        and min(spec.inputs[0].shape[1], spec.result.shape[1]) >= LANES
        and min(spec.result.shape[2:]) > 1
    )


def winograd_spec(spec: Conv2d, tile: tuple[int, int], wide: Sequence[int] = ()) -> WinogradConv2d:
    """The order of the same layer by tiles."""
    operands = tuple(Operand("acc") if o.kind == "acc" else o for o in spec.program.operands)
    values = {field.name: getattr(spec, field.name) for field in fields(Conv2d)}
    values["program"] = replace(spec.program, operands=operands)
    return WinogradConv2d(**values, tile=tile, wide=tuple(wide))


def _float_order(call: relax.Call, spec: WinogradConv2d, weight: np.ndarray) -> relax.Call:
    transformed = winograd.transformed_weight(weight, spec.tile).astype(np.float32)
    kept = [(role, array) for role, array in constants_of(call) if role != "weight"]
    return _ordered(call, spec, [("weight", transformed), *kept])


def _integer_order(call: relax.Call, spec: Conv2d, quantizer: WinogradQuantizer, constants) -> relax.Call:
    """The data's zero point, which was in the bias, is subtracted from the data."""
    bias = constants["bias"].astype(np.float64) + spec.pad_value * constants["weight"].sum((1, 2, 3), dtype=np.int64)
    if quantizer.correction is not None:
        bias = bias + quantizer.correction
    channels = [(role, array) for role, array in constants_of(call) if role == "channel"]
    own = quantizer.constants().items()
    order = winograd_spec(spec, quantizer.tile, quantizer.wide)
    return _ordered(call, order, [*own, ("bias", bias.astype(np.float32)), *channels])


def _ordered(call: relax.Call, spec: WinogradConv2d, constants) -> relax.Call:
    shape = [int(size) for size in call.attrs["shape"]]
    return kernel_call(spec, inputs_of(call), constants, tensor_of(call), shape, stored_of(call))
