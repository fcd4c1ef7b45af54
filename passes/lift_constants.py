"""LiftConstants: constants of scheduled kernels become parameters of `main`.

    main(x): call_tir(conv2d_f32, (x, packed weight, packed bias))
        ->   main(x, conv1_0, conv1_1): call_tir(conv2d_f32, (x, conv1_0, conv1_1))

so that a network can be run with other weights without compiling it again.

Requires   ScheduleKernels.
Ensures    behind all other parameters one per constant of the bindings named, in their order.  Constant tensors among
           a kernel's inputs stay where they are.
"""

from __future__ import annotations

from collections.abc import Mapping

import tvm
from tvm import relax

from .dataflow import Dataflow, Rebuilder, rebuild
from .expressions import Expr


@tvm.transform.module_pass(opt_level=0, name="LiftConstants")
class LiftConstants:
    """Lift the constants of kernel calls: name of the variable a call binds -> how many constants the kernel has."""

    def __init__(self, counts: Mapping[str, int]):
        self.counts = dict(counts)

    def transform_module(self, mod: tvm.IRModule, _ctx) -> tvm.IRModule:
        """Return the module with more parameters."""
        flow = Dataflow(mod)
        bindings = {binding.var.name: binding for binding in flow.bindings}
        lifted = {name: _parameters(bindings[name], count) for name, count in self.counts.items()}
        function = flow.function
        added = [parameter for parameters in lifted.values() for parameter in parameters]
        parameters = [*function.params, *added]
        extended = relax.Function(parameters, function.body, function.ret_ty, function.is_pure, function.attrs)
        out = mod.clone()
        out.update_func(mod.get_global_var("main"), extended)

        def rewrite(binding, value: Expr, _new: Rebuilder) -> Expr | None:
            parameters = lifted.get(binding.var.name)
            if parameters is None:
                return None
            function, operands = value.args[0], list(value.args[1].fields)
            operands[len(operands) - len(parameters) :] = parameters
            return relax.call_tir(function, operands, out_ty=binding.var.ty)

        return rebuild(out, rewrite)


def _parameters(binding, count: int) -> list[relax.Var]:
    operands = list(binding.value.args[1].fields)
    return [relax.Var(f"{binding.var.name}_{i}", expr.ty) for i, expr in enumerate(operands[len(operands) - count :])]
