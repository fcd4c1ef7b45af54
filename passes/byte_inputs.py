"""ByteInputs: the network takes images of bytes, and normalises them itself.

    main(x: float32[N, C, H, W]) { f(x) }
        ->   main(x: uint8[N, C, H, W]) { f((dequantize(x, 1, 0) - mean) / std) }

Requires   inputs that are float32 images.
Ensures    what follows is what the float network had: its own normalisation, if any, comes behind this one, and
           FoldScaleShift makes one of both. Passes know the image by its dequantize, the only one in a float network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvm_int8.errors import ConfigError
from tvm_int8.unique_names import UniqueNames

from .dataflow import Dataflow
from .expressions import Expr, Var, constant, dtype_of, op_name, shape_of, substitute


@tvm.transform.module_pass(opt_level=0, name="ByteInputs")
class ByteInputs:
    """Make every input uint8.

    Parameters
    ----------
    mean, std : number or sequence of C numbers, optional
        real = (byte - mean) / std, per channel; by default 0 and 1.

    Raises
    ------
    ConfigError
        An input is no float32 image, or mean and std do not fit it.
    """

    def __init__(self, mean: float | Sequence[float] | None = None, std: float | Sequence[float] | None = None):
        self.mean, self.std = mean, std

    def transform_module(self, mod: tvm.IRModule, _ctx) -> tvm.IRModule:
        """Return the module whose `main` takes bytes."""
        flow, function = Dataflow(mod), mod["main"]
        names = UniqueNames(var.name for var in flow.consumers)
        builder = relax.BlockBuilder()
        bindings, params, images, layers = [], [], {}, {}

        def emit(expr: Expr, name: str, layer: str) -> Var:
            name = names.take(name)
            layers[name] = layer
            expr = builder.normalize(expr)
            bindings.append(relax.VarBinding(relax.DataflowVar(name, expr.ty), expr))
            return bindings[-1].var

        for param, name in zip(flow.params, _input_names(function), strict=True):
            mean, std = self._constants(param, name)
            param_of_bytes = relax.Var(param.name, relax.TensorType(shape_of(param), "uint8"))
            unit = constant(np.float32(1)), constant(np.uint8(0))
            value = emit(relax.op.dequantize(param_of_bytes, *unit), f"{param.name}_bytes", name)
            if (std != 1).any():
                value = emit(relax.op.multiply(value, _per_channel(1 / std)), f"{param.name}_scaled", name)
            if mean.any():
                value = emit(relax.op.add(value, _per_channel(-mean / std)), f"{param.name}_normalised", name)
            params.append(param_of_bytes)
            images[param] = value
        for binding in flow.bindings:
            bindings.append(relax.VarBinding(binding.var, builder.normalize(substitute(binding.value, images))))
        body = relax.SeqExpr([relax.DataflowBlock(bindings)], substitute(function.body.body, images))
        attrs = dict(function.attrs.items()) if function.attrs is not None else {}
        attrs["layer_names"] = {**dict(attrs.get("layer_names", {})), **layers}
        body = builder.normalize(body)
        made = relax.Function(params, body, body.ty, function.is_pure, tvm.ir.DictAttrs(attrs))
        out = mod.clone()
        out.update_func(mod.get_global_var("main"), made)
        return out

    def _constants(self, param: Var, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of an input's channels, float64 [C]."""
        shape, dtype = shape_of(param), dtype_of(param)
        if len(shape) != 4 or dtype != "float32":
            found, action = f"input {name!r} is {dtype}{list(shape)}", "leave input_dtype out for this model"
            raise ConfigError("option 'input_dtype'", found, "float32 images [N, C, H, W]", action)
        mean = _numbers("input_mean", self.mean, 0.0, shape[1], name)
        std = _numbers("input_std", self.std, 1.0, shape[1], name)
        if (std <= 0).any():
            raise ConfigError("option 'input_std'", f"{list(std)}", "positive numbers", "pass standard deviations")
        return mean, std


def _input_names(function: relax.Function) -> list[str]:
    known = function.attrs is not None and "input_names" in function.attrs
    return [str(name) for name in function.attrs["input_names"]] if known else [var.name for var in function.params]


def _numbers(option: str, given: Any, default: float, channels: int, name: str) -> np.ndarray:
    expected = f"a number, or one for each of the {channels} channels of input {name!r}"
    try:
        values = np.asarray(default if given is None else given, np.float64).reshape(-1)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"option '{option}'", repr(given), expected, "pass numbers") from error
    if values.size not in (1, channels):
        raise ConfigError(f"option '{option}'", f"{values.size} numbers", expected, "pass one per channel")
    if not np.isfinite(values).all():
        raise ConfigError(f"option '{option}'", f"{list(values)}", expected, "pass finite numbers")
    return np.broadcast_to(values, channels)


def _per_channel(values: np.ndarray) -> Expr:
    return constant(values.astype(np.float32).reshape(1, -1, 1, 1))


def is_byte_image(call: Expr) -> bool:
    """Whether a value of a float network is an image of bytes: numbers 0 .. 255 that are integers already."""
    return op_name(call) == "dequantize" and isinstance(call.args[0], Var)
