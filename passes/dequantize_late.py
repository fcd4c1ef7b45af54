"""DequantizeLate: what is selected from quantised data is quantised, also where the model does not say so.

    y = max_pool2d(dequantize(q, s, z))     ->     y = max_pool2d(dequantize(q, s, z))
    conv2d(y, W)                                   conv2d(dequantize(quantize(y, s, z), s, z), W)

Nothing is rounded: y has only values of the grid. The pool becomes one of bytes, and the convolution one of integers.
NNCF writes models like this: it moves quantizers up to where the data are computed, and leaves it to the compiler to
see that pools, concatenations and slices keep them.

Requires   constant scales and zero points, the same for all parts of a concatenation. Scales per channel only pass
           through a selection of channels: a shuffle in front of a depthwise convolution.
Ensures    what kernels read of selected data are integers.
Not done   where nothing but a quantize, an output of the model or an operator without a kernel reads them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax

from .dataflow import Dataflow, Rebuilder, rebuild
from .expressions import Expr, Var, const_value, constant, dtype_of, op_name, vars_in
from .groups import fusable, is_anchor
from .quantization_parameters import INTEGERS, any_quantization_of
from .selections import selected_from, selects


@tvm.transform.module_pass(opt_level=0, name="DequantizeLate")
class DequantizeLate:
    """Write quantize and dequantize behind selections from quantised data."""

    def transform_module(self, mod: tvm.IRModule, _ctx) -> tvm.IRModule:
        """Return the module with selections quantised."""
        flow = Dataflow(mod)
        grids, computed_from = _grids(flow), _computed_from(flow)
        wanted = {var for var in grids if var in computed_from and selects(flow.value(var))}

        def rewrite(binding, _value: Expr, new: Rebuilder) -> Expr | None:
            for var in vars_in(binding.value):
                if var in wanted:
                    wanted.remove(var)
                    _write_pair(var, grids[var], new)
            return new.translate(binding.value)

        return rebuild(mod, rewrite)


@dataclass(frozen=True, eq=False)
class _Grid:
    """The values scale * (q - zero_point) of integers q; scale and zero point are [], or [C] for axis 1."""

    dtype: str
    scale: np.ndarray
    zero_point: np.ndarray

    def is_same(self, other: _Grid | None) -> bool:
        if other is None or other.dtype != self.dtype:
            return False
        return np.array_equal(other.scale, self.scale) and np.array_equal(other.zero_point, self.zero_point)

    def of_channels(self, order: np.ndarray) -> _Grid:
        return _Grid(self.dtype, self.scale[order], self.zero_point[order])


def _write_pair(var: Var, grid: _Grid, new: Rebuilder) -> None:
    parameters, axis = (constant(grid.scale), constant(grid.zero_point)), grid.scale.ndim or -1
    quantized = relax.op.quantize(new.translate(var), *parameters, axis, grid.dtype)
    integers = new.emit(quantized, f"{var.name}_quantized")
    new.redirect(var, new.emit(relax.op.dequantize(integers, *parameters, axis), f"{var.name}_real"))


def _grids(flow: Dataflow) -> dict[Var, _Grid]:
    """Variables whose values are all on the grid of a dequantize."""
    found: dict[Var, _Grid] = {}
    for binding in flow.bindings:
        if op_name(binding.value) == "dequantize":
            grid = _dequantized_grid(binding.value)
        elif selects(binding.value):
            grid = _selected_grid(binding.value, [found.get(source) for source in selected_from(binding.value)])
        else:
            continue
        if grid is not None:
            found[binding.var] = grid
    return found


def _dequantized_grid(call: relax.Call) -> _Grid | None:
    dtype, parameters = dtype_of(call.args[0]), any_quantization_of(call)
    if dtype not in INTEGERS or parameters is None:
        return None
    return _Grid(dtype, np.asarray(parameters[0], np.float32), np.asarray(parameters[1], dtype))


def _selected_grid(call: relax.Call, sources: list[_Grid | None]) -> _Grid | None:
    first = sources[0]
    if first is None or not all(first.is_same(source) for source in sources):
        return None
    if not first.scale.ndim:
        return first
    order = const_value(call.args[1]) if op_name(call) == "take" and int(call.attrs.axis) == 1 else None
    return None if order is None or order.ndim != 1 else first.of_channels(order)


def _computed_from(flow: Dataflow) -> set[Var]:
    """Variables that a kernel computes from, or from what is selected from them; outputs of the model are left out."""
    found: set[Var] = set()
    for binding in reversed(flow.bindings):
        users = flow.consumers[binding.var]
        if any(user.var in found if selects(user.value) else _computes(user, flow) for user in users):
            found.add(binding.var)
    return {var for var in found if not flow.is_output(var)}


def _computes(user: relax.VarBinding, flow: Dataflow) -> bool:
    return is_anchor(user, flow) or fusable(user)
