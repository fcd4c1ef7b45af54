"""Where the channels of a tensor can be scaled without changing what the network computes.

    conv2d -> add(bias) -> relu -> max_pool2d -> conv2d        f(s * x) = s * f(x) for every f in between, s > 0

A *region* is a layer, every operator up to the layers that read it, and these readers. Scaling the layer's output
channel c by s[c] and its readers' weights for that channel by 1 / s[c] leaves the network as it is, once constants in
between that are added or compared are scaled as well.

Covers     convolutions of any groups, also depthwise and transposed (and so dense layers, after DenseToConv2d); bias,
           ReLU, LeakyReLU, PReLU, clip and other bounds, multiplication by constants, pools, resizing, padding with
           zeros, views; several readers.
Not        what an output, an addition of two activations, a concatenation or any other operator reads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax

from .channel_affine import channel_vector
from .dataflow import Dataflow
from .expressions import Expr, Var, const_value, is_float, op_name, shape_of
from .groups import CONVOLUTIONS, is_view
from .linear_layers import is_linear_layer, layer_weight

BOUNDS = ("maximum", "minimum")
_POOLS = ("nn.max_pool2d", "nn.avg_pool2d", "nn.adaptive_avg_pool2d")
_ACTIVATIONS = ("nn.relu", "nn.leakyrelu")


@dataclass(frozen=True)
class Region:
    """A layer, the bindings between it and its readers, and the readers, in order of execution."""

    layer: relax.VarBinding
    between: tuple[relax.VarBinding, ...]
    readers: tuple[relax.VarBinding, ...]

    @property
    def tensors(self) -> list[Var]:
        """Those whose channels would be scaled."""
        return [binding.var for binding in (self.layer, *self.between)]


def scale_regions(flow: Dataflow) -> list[Region]:
    """All regions of a canonical float module, in order of their layers."""
    found = (_region(flow, binding) for binding in flow.bindings if _is_layer(binding.value))
    return [region for region in found if region is not None]


def channel_constant(call: Expr) -> np.ndarray | None:
    """float64 [C] of the right-hand operand of an operator, if it is constant and the same along all but axis 1."""
    value, shape = const_value(call.args[1]), shape_of(call)
    return None if value is None or len(shape) < 2 else channel_vector(value, shape, 1)


def clip_bounds(call: Expr) -> tuple[float, float] | None:
    """(low, high) of a clip with constant bounds."""
    if not all(isinstance(arg, tvm.tirx.IntImm | tvm.tirx.FloatImm) for arg in call.args[1:]):
        return None
    return float(call.args[1].value), float(call.args[2].value)


def _is_layer(call: Expr) -> bool:
    return op_name(call) in CONVOLUTIONS and is_linear_layer(call) and layer_weight(call) is not None and is_float(call)


def _region(flow: Dataflow, layer: relax.VarBinding) -> Region | None:
    between: list[relax.VarBinding] = []
    readers: list[relax.VarBinding] = []
    stack = [layer.var]
    while stack:
        var = stack.pop()
        if flow.is_output(var):
            return None
        for user in flow.consumers[var]:
            if _is_layer(user.value):
                readers.append(user)
            elif is_float(user.value) and _lets_scales_through(user.value):
                between.append(user)
                stack.append(user.var)
            else:
                return None
    order = {binding.var: index for index, binding in enumerate(flow.bindings)}
    by_place = [tuple(sorted(found, key=lambda b: order[b.var])) for found in (between, readers)]
    return Region(layer, *by_place) if readers else None


def _lets_scales_through(call: Expr) -> bool:
    """Whether scales per channel (axis 1) of the data can be taken out behind the operator."""
    name = op_name(call)
    if name in _ACTIVATIONS:
        return True
    if name == "nn.prelu":
        return const_value(call.args[1]) is not None and int(call.attrs.axis) == 1
    if name in ("add", "multiply", *BOUNDS):
        return shape_of(call.args[0]) == shape_of(call) and channel_constant(call) is not None
    if name == "clip":
        return clip_bounds(call) is not None
    if name in _POOLS or name == "image.resize2d":
        return str(call.attrs.layout) == "NCHW"
    if name == "nn.pad":
        channels = [int(width) for width in call.attrs.pad_width][2:4]
        return str(call.attrs.pad_mode) == "constant" and float(call.attrs.pad_value) == 0 and not any(channels)
    return is_view(call)
