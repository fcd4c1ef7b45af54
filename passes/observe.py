"""Observe: the float network that also returns the tensors calibration must see.

    main(x) -> y     becomes     main(x) -> (y..., point_1, point_2, ...)

Ensures    the observed tensors are the ones that kernels of the quantised network will store, so the fused float
           kernels deliver them as they are; attribute `packed_outputs` says where they begin among the outputs, and
           AssignLayouts leaves them in whatever layout their kernels store.
"""

from __future__ import annotations

import tvm
from tvm import relax

from .dataflow import Dataflow
from .expressions import Var, substitute

PACKED_OUTPUTS = "packed_outputs"


@tvm.transform.module_pass(opt_level=0, name="Observe")
class Observe:
    """Return `names` (variables of `main`, parameters excepted) behind the outputs."""

    def __init__(self, names: list[str]):
        self.names = names

    def transform_module(self, mod: tvm.IRModule, _ctx) -> tvm.IRModule:
        """Return the observed module."""
        flow = Dataflow(mod)
        function = flow.function
        by_name = {var.name: var for var in flow.producer}
        wanted = [*flow.outputs, *(by_name[name] for name in self.names)]
        swap: dict[Var, Var] = {}
        for var in wanted:
            if isinstance(var, relax.DataflowVar) and var not in swap:
                swap[var] = relax.Var(var.name, var.ty)
        builder = relax.BlockBuilder()
        bindings = [
            relax.VarBinding(swap.get(b.var, b.var), builder.normalize(substitute(b.value, swap)))
            for b in flow.bindings
        ]
        body = relax.Tuple([swap.get(var, var) for var in wanted])
        seq = builder.normalize(relax.SeqExpr([relax.DataflowBlock(bindings)], body))
        out = mod.clone()
        observed = relax.Function(function.params, seq, seq.ty, function.is_pure, function.attrs)
        observed = observed.with_attr(PACKED_OUTPUTS, len(flow.outputs))
        out.update_func(mod.get_global_var("main"), observed)
        return out
