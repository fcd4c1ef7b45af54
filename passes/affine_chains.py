"""Finds chains of per-channel scales and shifts and decides where each of them goes.

A chain is a run of affine operators, each read by the next one only: `source -> link -> ... -> end`. In order of
execution every chain goes, whole, to the first of these places that can take it:

1. the linear layer that produces its source, when nothing else reads that layer;
2. the linear layer that alone reads its end, when a shift means the same to every output pixel;
3. one multiply and one add where it stands.

This is the engine of FoldBatchNorm and FoldScaleShift, which differ in the chains they look at.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax

from tvm_int8.passes.channel_affine import READABLE, ChannelAffine, batch_norm_affine, fits, read_affine
from tvm_int8.passes.dataflow import (
    Dataflow,
    Expr,
    Rebuilder,
    Var,
    const_value,
    constant,
    dtype_of,
    is_float,
    op_name,
    rebuild,
    shape_of,
)
from tvm_int8.passes.linear_layers import (
    bias_shapes,
    channel_axis,
    is_linear_layer,
    layer_weight,
    response_to_shift,
    scale_inputs,
    scale_outputs,
    with_weight,
)


def fold_chains(mod: tvm.IRModule, around_batch_norm: bool = False) -> tvm.IRModule:
    """Fold or merge the affine chains of `main`.

    Parameters
    ----------
    mod : IRModule
        Left unchanged.
    around_batch_norm : bool
        Only the chains that have a batch norm among their links.
    """
    plan = _Plan(flow := Dataflow(mod))
    for chain in find_chains(flow):
        if chain.has_batch_norm or not around_batch_norm:
            plan.place(chain)
    return rebuild(mod, plan.rewrite)


@dataclass
class Chain:
    """A run of affine links along channel axis `axis`, and what it computes from its source."""

    source: Expr
    axis: int
    links: list[relax.VarBinding]
    affine: ChannelAffine
    has_batch_norm: bool

    @property
    def end(self) -> Var:
        """The variable that holds the chain's result."""
        return self.links[-1].var


def find_chains(flow: Dataflow) -> list[Chain]:
    """The longest affine chains of a function, in order of their first links."""
    chains: list[Chain] = []
    ending_at: dict[Var, Chain] = {}
    for binding in flow.bindings:
        source = _source(flow, binding)
        if source is None:
            continue
        chain = ending_at.get(source) if _read_once(flow, source, binding) else None
        affine = _read(flow, binding, chain.axis) if chain else None
        if affine is not None:
            chain.affine = chain.affine.then(affine)
            chain.links.append(binding)
            chain.has_batch_norm |= _is_batch_norm(binding)
        else:
            axis = _axis_of(flow, source, binding)
            affine = _read(flow, binding, axis)
            if affine is None:
                continue
            chain = Chain(source, axis, [binding], affine, _is_batch_norm(binding))
            chains.append(chain)
        ending_at[binding.var] = chain
    return chains


def _is_batch_norm(binding: relax.VarBinding) -> bool:
    return isinstance(binding.value, relax.TupleGetItem)


def _source(flow: Dataflow, binding: relax.VarBinding) -> Expr | None:
    """The tensor an affine link reads, or None if the binding cannot be a link."""
    value = binding.value
    if isinstance(value, relax.TupleGetItem):
        call = flow.value(value.tuple_value)
        return call.args[0] if value.index == 0 and op_name(call) == "nn.batch_norm" else None
    if op_name(value) not in READABLE or not is_float(value) or len(shape_of(value)) < 2:
        return None
    variables = [arg for arg in value.args if isinstance(arg, Var)]
    return variables[0] if len(variables) == 1 else None


def _read(flow: Dataflow, binding: relax.VarBinding, axis: int) -> ChannelAffine | None:
    if _is_batch_norm(binding):
        call = flow.value(binding.value.tuple_value)
        rank = len(shape_of(call.args[0]))
        return batch_norm_affine(call, binding.var.name) if int(call.attrs.axis) % rank == axis else None
    found = read_affine(binding.value, axis)
    return None if found is None else found[1]


def _axis_of(flow: Dataflow, source: Expr, binding: relax.VarBinding) -> int:
    """The channel axis of a chain that starts with this link."""
    if _is_batch_norm(binding):
        return int(flow.value(binding.value.tuple_value).attrs.axis) % len(shape_of(source))
    value = flow.value(source)
    return channel_axis(value) if is_linear_layer(value) else 1


def _read_once(flow: Dataflow, source: Expr, binding: relax.VarBinding) -> bool:
    """Whether a link is all that reads its source (for a batch norm: that tuple is not read for anything else)."""
    if not isinstance(source, Var) or flow.only_consumer(source) is None:
        return False
    if not _is_batch_norm(binding):
        return True
    users = flow.consumers[binding.value.tuple_value]
    return sum(not _is_batch_norm(user) or user.value.index == 0 for user in users) == 1


class _Plan:
    """What becomes of each binding; filled chain by chain, then handed to `rebuild`."""

    def __init__(self, flow: Dataflow):
        self.flow = flow
        self.weights: dict[Var, np.ndarray] = {}  # layer -> new weight, float64
        self.input_shifts: dict[Var, np.ndarray] = {}  # layer -> what a shift of its input adds to its outputs, [OC]
        self.ends: dict[Var, tuple[Expr, np.ndarray | None, np.ndarray | None]] = {}  # end -> source, scale, shift

    def place(self, chain: Chain) -> None:
        """Find a place for a chain."""
        if not (self._into_layer_before(chain) or self._into_layer_after(chain)):
            self._where_it_stands(chain)

    def _into_layer_before(self, chain: Chain) -> bool:
        layer, call = chain.source, self.flow.value(chain.source)
        if not is_linear_layer(call) or channel_axis(call) != chain.axis:
            return False
        if not _read_once(self.flow, layer, chain.links[0]):
            return False
        affine = chain.affine
        if layer in self.input_shifts:
            moved = self.input_shifts[layer]
            affine = ChannelAffine(np.ones_like(moved), moved).then(affine)
        elif not affine.scales and affine.shifts and _is_canonical(chain, bias_shapes(call)):
            return True
        weight = self.weights.get(layer, layer_weight(call))
        if affine.scales:
            if weight is None:
                return False
            weight = scale_outputs(call, weight, affine.scale)
        if not fits(affine.shift, dtype_of(call)) or (affine.scales and not fits(weight, dtype_of(call))):
            return False
        if affine.scales:
            self.weights[layer] = weight
        self.input_shifts.pop(layer, None)
        shift = affine.shift.reshape(bias_shapes(call)[0]) if affine.shifts else None
        self.ends[chain.end] = (layer, None, shift)
        return True

    def _into_layer_after(self, chain: Chain) -> bool:
        user = self.flow.only_consumer(chain.end)
        if user is None or not is_linear_layer(user.value) or not user.value.args[0].same_as(chain.end):
            return False
        call = user.value
        data_axis = len(shape_of(chain.end)) - 1 if op_name(call) == "matmul" else 1
        weight = layer_weight(call)
        if weight is None or data_axis != chain.axis:
            return False
        moved = response_to_shift(call, weight, chain.affine.shift)
        scaled = scale_inputs(call, weight, chain.affine.scale)
        if moved is None or not (fits(moved, dtype_of(call)) and fits(scaled, dtype_of(call))):
            return False
        if chain.affine.scales:
            self.weights[user.var] = scaled
        if moved.any():
            self.input_shifts[user.var] = moved
        self.ends[chain.end] = (chain.source, None, None)
        return True

    def _where_it_stands(self, chain: Chain) -> None:
        affine, shape = chain.affine, shape_of(chain.end)
        column = tuple(dim if index == chain.axis else 1 for index, dim in enumerate(shape))
        if not chain.has_batch_norm:
            fewer = affine.scales + affine.shifts <= len(chain.links)
            worthwhile = fewer and [op_name(link.value) for link in chain.links] != ["negative"]
            finite = fits(affine.scale, dtype_of(chain.end)) and fits(affine.shift, dtype_of(chain.end))
            if not (worthwhile and finite) or _is_canonical(chain, [column, ()]):
                return

        def packed(vector: np.ndarray) -> np.ndarray:
            return vector[0] if affine.scalar else vector.reshape(column)

        scale = packed(affine.scale) if affine.scales else None
        self.ends[chain.end] = (chain.source, scale, packed(affine.shift) if affine.shifts else None)

    def rewrite(self, binding: relax.VarBinding, value: Expr, new: Rebuilder) -> Expr | None:
        """The callback of `rebuild`."""
        var = binding.var
        if var in self.ends:
            source, scale, shift = self.ends[var]
            dtype, result = dtype_of(var), new.translate(source)
            if scale is not None:
                result = relax.op.multiply(result, constant(scale, dtype))
            return result if shift is None else relax.op.add(result, constant(shift, dtype))
        if var in self.weights:
            value = with_weight(value, self.weights[var])
        if var in self.input_shifts:
            bias = self.input_shifts[var].reshape(bias_shapes(binding.value)[0])
            return relax.op.add(value, constant(bias, dtype_of(var)))
        if isinstance(value, relax.TupleGetItem) and value.index in (1, 2):
            return _statistics(new.value(value.tuple_value), value.index)
        return value if var in self.weights else None


def _statistics(call: Expr, index: int) -> Expr | None:
    """Results 1 and 2 of a batch norm in inference mode are the mean and variance it was given."""
    return call.args[index + 2] if op_name(call) == "nn.batch_norm" and not call.attrs.training else None


def _is_canonical(chain: Chain, shapes: list[tuple[int, ...]]) -> bool:
    """Whether a chain is `multiply`, `add` or `multiply, add` with right-hand constants of one of these shapes."""
    names = [op_name(link.value) for link in chain.links]
    if names not in (["multiply"], ["add"], ["multiply", "add"]):
        return False
    constants = [const_value(link.value.args[1]) for link in chain.links]
    return all(array is not None and array.shape in shapes for array in constants)
