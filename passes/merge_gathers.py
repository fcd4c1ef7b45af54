"""MergeGathers: channels that are moved several times in a row are moved once.

    x = shuffle(concat(a, b))                   ->   x = gather(a, b)
    l = x[:, :58]; r = x[:, 58:]                ->   l = gather(a, b); r = gather(a, b)       and x is gone

Requires   OrderKernels.
Ensures    no gather is left whose result only gathers read, unless that is the cheaper way: slices and
           concatenations of whole blocks cost nothing (`overlay_channels`), and a gather reads `MOST_INPUTS` tensors
           at most.  Results are the same to the last bit: of two gathers in a row, one has to copy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import tvm

from tvm_int8.kernel_op import inputs_of, is_kernel, kernel_call, spec_of, stored_of, tensor_of
from tvm_int8.specs import NOTHING, ChannelGather

from .dataflow import Dataflow, Rebuilder, rebuild
from .expressions import Expr, Var, shape_of
from .gather_parts import copies, parts_of

MOST_INPUTS = 3
"""Each further tensor is a byte shuffle per vector."""
CALL_BYTES = 16 << 10
"""What a call costs, in bytes moved."""


@tvm.transform.module_pass(opt_level=0, name="MergeGathers")
class MergeGathers:
    """Let gathers read what the gathers before them read."""

    def transform_module(self, mod: tvm.IRModule, _ctx) -> tvm.IRModule:
        """Return the module with fewer gathers."""
        merged = _merged(Dataflow(mod))

        def rewrite(binding, value: Expr, new: Rebuilder) -> Expr | None:
            gather = merged.get(binding.var)
            if gather is None:
                return None
            inputs = [new.translate(expr) for expr in gather.inputs]
            return kernel_call(gather.spec, inputs, [], tensor_of(value), shape_of(binding.var), stored_of(value))

        return rebuild(mod, rewrite)


@dataclass(frozen=True)
class _Gather:
    """A gather and what it reads, in terms of the old function."""

    spec: ChannelGather
    inputs: tuple[Expr, ...]

    @property
    def cost(self) -> int:
        """Bytes moved; nothing where whole blocks of one image can stay where they are."""
        shape = self.spec.result.shape
        if shape[0] == 1 and all(part.tensor is not None for part in parts_of(self.spec)):
            return 0
        return int(np.prod(shape)) * np.dtype(self.spec.result.dtype).itemsize + CALL_BYTES


def _merged(flow: Dataflow) -> dict[Var, _Gather]:
    """The gathers that read something else than before."""
    gathers: dict[Var, _Gather] = {}
    for binding in flow.bindings:
        spec = spec_of(binding.value) if is_kernel(binding.value) else None
        if isinstance(spec, ChannelGather):
            gathers[binding.var] = _Gather(spec, tuple(inputs_of(binding.value)))
    changed: dict[Var, _Gather] = {}
    for var, gather in list(gathers.items()):
        gather = gathers[var]
        users = list(dict.fromkeys(binding.var for binding in flow.consumers[var]))
        if flow.is_output(var) or not users or any(user not in gathers for user in users):
            continue
        through = {user: _through(gathers[user], var, gather) for user in users}
        if None in through.values():
            continue
        before = gather.cost + sum(gathers[user].cost for user in users)
        if sum(merged.cost for merged in through.values()) <= before:
            gathers.update(through)
            changed.update(through)
    return changed


def _through(gather: _Gather, var: Var, inner: _Gather) -> _Gather | None:
    """`gather` with what `inner`, which delivers `var`, reads in the place of `var`; None where that is not exact."""
    inputs: list[Expr] = []
    entries: list[tuple] = []  # tensor, scale, zero point

    def number(expr: Expr, entry: tuple) -> int:
        for i, (known, other) in enumerate(zip(inputs, entries, strict=True)):
            if known.same_as(expr) and other == entry:
                return i
        inputs.append(expr)
        entries.append(entry)
        return len(inputs) - 1

    source = []
    for tensor, channel in gather.spec.source:
        item = (tensor, channel)
        if item != NOTHING:
            expr, entry = gather.inputs[tensor], _entry(gather.spec, tensor)
            if expr == var:
                item = inner.spec.source[channel]
                found = _entry_through(gather.spec, tensor, inner.spec, item[0])
                if found is None:
                    return None
                expr, entry = (inner.inputs[item[0]] if item != NOTHING else var), found
            item = (number(expr, entry), item[1]) if item != NOTHING else NOTHING
        source.append(item)
    if len(inputs) > MOST_INPUTS or not inputs:
        return None
    tensors, scales, zero_points = zip(*entries, strict=True)
    spec = replace(gather.spec, inputs=tensors, source=tuple(source), scales=scales, zero_points=zero_points)
    return _Gather(spec, tuple(inputs))


def _entry(spec: ChannelGather, tensor: int) -> tuple:
    return spec.inputs[tensor], spec.scales[tensor], spec.zero_points[tensor]


def _entry_through(spec: ChannelGather, tensor: int, inner: ChannelGather, inner_tensor: int) -> tuple | None:
    """How a gather reads what `inner` delivers as its input `tensor` right from the input of `inner`."""
    same_zero = spec.zero_points[tensor] == inner.output.zero_point
    if inner_tensor == NOTHING[0]:
        return () if same_zero else None
    if copies(inner, inner_tensor):
        return inner.inputs[inner_tensor], spec.scales[tensor], spec.zero_points[tensor]
    return _entry(inner, inner_tensor) if same_zero and copies(spec, tensor) else None
