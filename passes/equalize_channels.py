"""EqualizeChannels: move scale between a tensor's channels and the weights around it, so that one step size fits all.

    conv(w, b) -> relu -> conv(v)      ->      conv(w / s, b / s) -> relu -> conv(v * s)

    with s > 0 per channel of the tensor between

Requires   a canonical float module and factors for tensors that `equalizable` names: made by a convolution or a
           per-channel multiply with a positively homogeneous epilogue, and read by convolutions only.
Ensures    the same function in exact arithmetic; the tensor's channel c is divided by s[c].
Not handled   tensors that a residual addition, a concat or an output reads.
Method     cross-layer equalisation: Nagel et al. 2019 (arXiv:1906.04721), section 4.1; the factors come from observed
           activations (`tvm_int8.quantization.equalization`) rather than from weights alone.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from .dataflow import Dataflow, Rebuilder, rebuild
from .expressions import Expr, Var, const_value, constant, op_name, shape_of
from .groups import CONVOLUTIONS, Group

HOMOGENEOUS = ("nn.relu", "nn.leakyrelu", "nn.prelu", "multiply", "divide")
SHIFTED = ("add", "subtract", "maximum", "minimum")


def equalizable(flow: Dataflow, group: Group) -> bool:
    """Whether the tensor a group delivers can be equalised."""
    if flow.is_output(group.exit) or len(shape_of(group.exit)) != 4 or not _producer(flow, group):
        return False
    if not all(_homogeneous(binding.value, flow) for binding in group.bindings if binding is not group.anchor):
        return False
    readers = flow.consumers[group.exit]
    return bool(readers) and all(_reads_as_data(reader.value, group.exit) for reader in readers)


def _producer(flow: Dataflow, group: Group) -> bool:
    if group.anchor is None:
        first = group.bindings[0].value
        return (
            op_name(first) == "multiply"
            and const_value(first.args[1]) is not None
            and len(group.external_inputs()) <= 8
        )
    call = group.anchor.value
    plain = op_name(call) == "nn.conv2d" or (op_name(call) == "nn.conv2d_transpose" and int(call.attrs.groups) == 1)
    return plain and const_value(call.args[1]) is not None


def _homogeneous(call: Expr, flow: Dataflow) -> bool:
    """f(x / s) = f(x) / s once the call's additive constants are divided by s."""
    name = op_name(call)
    if name in ("nn.relu", "nn.leakyrelu", "nn.prelu", "clip"):
        return True
    return name in (*HOMOGENEOUS, *SHIFTED) and const_value(call.args[1]) is not None


def _reads_as_data(call: Expr, var: Var) -> bool:
    return op_name(call) in CONVOLUTIONS and call.args[0] == var and const_value(call.args[1]) is not None


def incoming_weights(call: Expr) -> np.ndarray:
    """A convolution's weights by input channel: [C, outputs that read it, KH * KW]."""
    weight, groups = const_value(call.args[1]), int(call.attrs.groups)
    if op_name(call) == "nn.conv2d_transpose":
        return weight.reshape(*weight.shape[:2], -1)
    out, in_group = weight.shape[:2]
    grouped = weight.reshape(groups, out // groups, in_group, -1).transpose(0, 2, 1, 3)
    return grouped.reshape(groups * in_group, out // groups, -1)


@tvm.transform.module_pass(opt_level=0, name="EqualizeChannels")
class EqualizeChannels:
    """Apply factors: name of a tensor -> s [C]."""

    def __init__(self, factors: dict[str, np.ndarray], groups: dict[str, Group]):
        self.factors, self.groups = factors, groups

    def transform_module(self, mod: tvm.IRModule, _ctx) -> tvm.IRModule:
        """Return the equalised module."""
        divided: dict[str, np.ndarray] = {}  # name of a binding -> s by which it is divided
        starts: set[str] = set()  # where the division begins
        for name, factor in self.factors.items():
            group = self.groups[name]
            divided |= {binding.var.name: factor for binding in group.bindings}
            starts.add((group.anchor or group.bindings[0]).var.name)

        def rewrite(binding, value: Expr, _new: Rebuilder) -> Expr | None:
            name, call = binding.var.name, value
            if op_name(call) in CONVOLUTIONS and isinstance(binding.value.args[0], Var):
                read = self.factors.get(binding.value.args[0].name)
                if read is not None:
                    call = _with_weight(call, _scale_inputs(call, read))
            if name in starts:
                call = _divide_start(call, divided[name])
            elif name in divided:
                call = _divide_constants(call, divided[name])
            return call

        return rebuild(mod, rewrite)


def _with_weight(call: relax.Call, weight: np.ndarray) -> relax.Call:
    return relax.Call(
        call.op, [call.args[0], constant(weight.astype(np.float32)), *call.args[2:]], call.attrs, call.ty_args
    )


def _scale_inputs(call: relax.Call, factor: np.ndarray) -> np.ndarray:
    weight, groups = const_value(call.args[1]).astype(np.float64), int(call.attrs.groups)
    if op_name(call) == "nn.conv2d_transpose":
        return weight * factor.reshape(-1, 1, 1, 1)
    per_group = factor.reshape(groups, 1, weight.shape[1], 1, 1)
    return (weight.reshape(groups, -1, *weight.shape[1:]) * per_group).reshape(weight.shape)


def _divide_start(call: relax.Call, factor: np.ndarray) -> relax.Call:
    if op_name(call) == "multiply":
        return relax.op.multiply(call.args[0], _spread(call.args[1], 1.0 / factor, np.multiply))
    weight = const_value(call.args[1]).astype(np.float64)
    shape = (1, -1, 1, 1) if op_name(call) == "nn.conv2d_transpose" else (-1, 1, 1, 1)
    return _with_weight(call, weight / factor.reshape(shape))


def _divide_constants(call: relax.Call, factor: np.ndarray) -> Expr:
    name = op_name(call)
    if name in SHIFTED:
        return relax.Call(call.op, [call.args[0], _spread(call.args[1], 1.0 / factor, np.multiply)], call.attrs)
    if name == "clip":
        low, high = float(call.args[1].value), float(call.args[2].value)
        inner = call.args[0]
        if low > -np.inf:
            inner = relax.op.nn.relu(inner) if low == 0.0 else relax.op.maximum(inner, _channels(low / factor))
        return relax.op.minimum(inner, _channels(high / factor)) if high < np.inf else inner
    return call


def _channels(values: np.ndarray):
    return constant(np.asarray(values, np.float32).reshape(1, -1, 1, 1))


def _spread(expr: Expr, factor: np.ndarray, combine):
    """A constant combined with per-channel values."""
    value = const_value(expr).astype(np.float64)
    value = value.reshape((1,) * (4 - value.ndim) + value.shape)
    return constant(combine(value, factor.reshape(1, -1, 1, 1)).astype(np.float32))
