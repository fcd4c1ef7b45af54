"""DequantizeLate: what is selected from quantised data is quantised, also where the model does not say so.

    y = max_pool2d(dequantize(q, s, z))     ->     y = max_pool2d(dequantize(q, s, z))
    conv2d(y, W)                                   conv2d(dequantize(quantize(y, s, z), s, z), W)

Nothing is rounded: y has only values of the grid. The pool becomes one of bytes, and the convolution one of integers.
NNCF writes models like this: it moves quantizers up to where the data are computed, and leaves it to the compiler to
see that pools, concatenations and slices keep them.

Requires   constant scales and zero points, one per tensor, and the same for all parts of a concatenation.
Ensures    what kernels read of selected data are integers.
Not done   where nothing but a quantize, an output of the model or an operator without a kernel reads them.
"""

from __future__ import annotations

import tvm
from tvm import relax

from .dataflow import Dataflow, Rebuilder, rebuild
from .expressions import Expr, Var, dtype_of, op_name, vars_in
from .groups import fusable, is_anchor
from .quantization_parameters import INTEGERS, quantization_of
from .selections import selected_from, selects


@tvm.transform.module_pass(opt_level=0, name="DequantizeLate")
class DequantizeLate:
    """Write quantize and dequantize behind selections from quantised data."""

    def transform_module(self, mod: tvm.IRModule, _ctx) -> tvm.IRModule:
        """Return the module with selections quantised."""
        flow = Dataflow(mod)
        grid, computed_from = _on_grid(flow), _computed_from(flow)
        wanted = {var for var in grid if var in computed_from and selects(flow.value(var))}

        def rewrite(binding, _value: Expr, new: Rebuilder) -> Expr | None:
            for var in vars_in(binding.value):
                if var in wanted:
                    wanted.remove(var)
                    _write_pair(var, grid[var], new)
            return new.translate(binding.value)

        return rebuild(mod, rewrite)


def _write_pair(var: Var, dequantize: relax.Call, new: Rebuilder) -> None:
    scale, zero_point = dequantize.args[1:]
    quantized = relax.op.quantize(new.translate(var), scale, zero_point, -1, dtype_of(dequantize.args[0]))
    integers = new.emit(quantized, f"{var.name}_quantized")
    new.redirect(var, new.emit(relax.op.dequantize(integers, scale, zero_point, -1), f"{var.name}_real"))


def _on_grid(flow: Dataflow) -> dict[Var, relax.Call]:
    """Variables whose values are all on the grid of a dequantize."""
    grid: dict[Var, relax.Call] = {}
    for binding in flow.bindings:
        call = binding.value
        if op_name(call) == "dequantize" and dtype_of(call.args[0]) in INTEGERS and quantization_of(call) is not None:
            grid[binding.var] = call
        elif selects(call):
            sources = [grid.get(source) for source in selected_from(call)]
            if all(source is not None and _same(source, sources[0]) for source in sources):
                grid[binding.var] = sources[0]
    return grid


def _same(one: relax.Call, other: relax.Call | None) -> bool:
    if other is None or dtype_of(one.args[0]) != dtype_of(other.args[0]):
        return False
    return quantization_of(one) == quantization_of(other)


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
