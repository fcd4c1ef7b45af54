"""SimulateQuantization: a float network whose activations are rounded as parameters of `main` say.

    main(x)  ->  main(x, relu1_inverse, relu1_low, relu1_high, relu1_scale, relu1_share, ...)

    relu1  ->  relu1 + share * (scale * min(max(round(relu1 * inverse), low), high) - relu1)

With share 1 a tensor is rounded, with share 0 it passes as it is; so one compiled network stands for every choice of
quantisers. Weights are constants of kernels; `LiftConstants` makes parameters of those.

Requires   a canonical float module.
Ensures    for every point five parameters [N, C, 1, 1], or [N, C] for a tensor of rank 2, behind the inputs; attribute
           `packed_outputs` as `Observe` leaves it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tvm
from tvm import relax

from .dataflow import Dataflow, Rebuilder, rebuild
from .expressions import Expr, Var, shape_of, vars_in
from .quantizers import ActivationQuantizer

ROLES = ("inverse", "low", "high", "scale", "share")
"""The parameters of a point, in order."""


@tvm.transform.module_pass(opt_level=0, name="SimulateQuantization")
class SimulateQuantization:
    """Round the tensors called `points`, inputs included, before anyone reads them."""

    def __init__(self, points: Sequence[str]):
        self.points = tuple(points)

    def transform_module(self, mod: tvm.IRModule, _ctx) -> tvm.IRModule:
        """Return the module with parameters for every point."""
        flow = Dataflow(mod)
        variables = {var.name: var for var in (*flow.params, *flow.producer)}
        parameters = {variables[name]: _parameters(variables[name]) for name in self.points}
        function = flow.function
        ordered = [parameter for own in parameters.values() for parameter in own]
        extended = relax.Function(
            [*function.params, *ordered], function.body, function.ret_ty, function.is_pure, function.attrs
        )
        out = mod.clone()
        out.update_func(mod.get_global_var("main"), extended)
        done: set[Var] = set()

        def rewrite(binding, _value: Expr, new: Rebuilder) -> Expr | None:
            for var in vars_in(binding.value):
                if var in parameters and var not in done:
                    done.add(var)
                    new.redirect(var, _rounded(new, new.translate(var), parameters[var], var.name))
            return new.translate(binding.value)

        return rebuild(out, rewrite)


def _parameters(var: Var) -> list[relax.Var]:
    ty = relax.TensorType(_parameter_shape(shape_of(var)), "float32")
    return [relax.Var(f"{var.name}_{role}", ty) for role in ROLES]


def _parameter_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], shape[1], *[1] * (len(shape) - 2))


def _rounded(new: Rebuilder, x: Expr, parameters: Sequence[Expr], name: str) -> Expr:
    inverse, low, high, scale, share = parameters
    steps = relax.op.round(relax.op.multiply(x, inverse))
    steps = relax.op.minimum(relax.op.maximum(steps, low), high)
    error = relax.op.subtract(relax.op.multiply(steps, scale), x)
    return new.emit(relax.op.add(x, relax.op.multiply(error, share)), f"{name}_simulated")


def parameter_values(quantizer: ActivationQuantizer | None, shape: tuple[int, ...]) -> list[np.ndarray]:
    """What the parameters of a point must be.

    Parameters
    ----------
    quantizer : ActivationQuantizer or None
        None lets the tensor pass as it is.
    shape : tuple of int
        The tensor's.

    Returns
    -------
    list of float32 arrays
        One for each of `ROLES`.
    """
    if quantizer is None:
        values: list = [1.0, 0.0, 0.0, 1.0, 0.0]
    else:
        (least, most), zero_point = quantizer.limits, quantizer.zero_point.astype(np.float32)
        inverse = np.float32(1) / quantizer.scale
        values = [inverse, least - zero_point, most - zero_point]
        values += [quantizer.scale, 1.0]
    parameter_shape = _parameter_shape(shape)
    spread = [1, -1, *[1] * (len(shape) - 2)]
    return [
        np.ascontiguousarray(np.broadcast_to(np.reshape(np.asarray(v, np.float32), spread), parameter_shape))
        for v in values
    ]
