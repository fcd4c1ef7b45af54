"""A canonical float network as a PyTorch module, with or without the quantisers of its integer form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import tvm
from torch import nn
from tvm import relax

from tvm_int8.errors import ModelError
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.expressions import Expr, Var, const_value, leaves, op_name, shape_of
from tvm_int8.passes.quantizers import Quantizers

from . import torch_arithmetic, torch_layers  # noqa: F401  (their rules)
from .fake_quantizers import TrainedWeight, rounded
from .torch_registry import RULES


class TorchNetwork(nn.Module):
    """Computes what the compiled network computes, but for the rounding of float32 sums.

    Parameters
    ----------
    mod : IRModule
        Canonical float module.
    quantizers : Quantizers, optional
        Of that module: what they round is rounded, where they round it, and weights can be trained. None: FP32.

    Raises
    ------
    ModelError
        Operators have no form here; all of them are named.
    """

    def __init__(self, mod: tvm.IRModule, quantizers: Quantizers | None = None):
        super().__init__()
        self.flow, self.quantizers = Dataflow(mod), quantizers or Quantizers()
        self._layers = {str(name): str(layer) for name, layer in dict(mod["main"].attrs["layer_names"]).items()}
        self.inputs = [str(name) for name in mod["main"].attrs["input_names"]]
        self.outputs = [str(name) for name in mod["main"].attrs["output_names"]]
        self._check_operators()
        self._constants: dict[Expr, torch.Tensor | None] = {}
        self._names = list(self.quantizers.weights)
        self.weights = nn.ModuleList(self._trained_weight(name) for name in self._names)
        self._trained = dict(zip(self._names, self.weights, strict=True))

    def _trained_weight(self, name: str) -> TrainedWeight:
        var = next(var for var in self.flow.producer if var.name == name)
        call, weight = self.flow.value(var), self.quantizers.weights[name]
        divisor, step = self.quantizers.divisor(call), self._data_step(call)
        return TrainedWeight(call, weight, divisor, step, self._bias_behind(var))

    def _data_step(self, call: relax.Call) -> np.ndarray:
        """What one is worth of the integers that a convolution reads, [] or [O]; bytes of images count as they are."""
        data = self.quantizers.activations.get(call.args[0].name)
        if data is None:
            return np.ones(())
        if not data.per_channel:
            return data.scale.astype(np.float64)
        if self.quantizers.divisor(call) is not None:
            return np.asarray(data.step, np.float64)
        return np.repeat(data.scale.astype(np.float64), shape_of(call)[1] // len(data.scale))

    def _bias_behind(self, var: Var) -> np.ndarray:
        """The constants per channel [O] that are added to a convolution, summed."""
        total, user = np.zeros(shape_of(var)[1]), self.flow.only_consumer(var)
        while user is not None and op_name(user.value) in ("add", "reshape"):
            shape = shape_of(user.value)
            if op_name(user.value) == "add":
                constants = [value for arg in user.value.args if (value := const_value(arg)) is not None]
                axes = (1, len(total), *[1] * (len(shape) - 2))
                if len(constants) != 1 or (*[1] * (len(shape) - constants[0].ndim), *constants[0].shape) != axes:
                    break
                total += constants[0].reshape(-1)
            elif shape[1:2] != (len(total),) or len(shape) > len(shape_of(var)):
                break
            user = self.flow.only_consumer(user.var)
        return total

    def _check_operators(self) -> None:
        unknown: dict[str, str] = {}
        for binding in self.flow.bindings:
            value = binding.value
            if isinstance(value, relax.Call) and op_name(value) not in RULES:
                unknown.setdefault(op_name(value) or str(value.op), self._layers.get(binding.var.name, ""))
        if unknown:
            found = ", ".join(f"{name} (layer '{layer}')" for name, layer in unknown.items())
            raise ModelError(
                "fine-tuning", f"operators without a form in PyTorch here: {found}", "", "leave them out of the model"
            )

    def forward(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """The outputs for inputs in order, with any number of samples along the first axis."""
        values = dict(zip(self.flow.params, inputs, strict=True))
        read: dict[Var, torch.Tensor] = {}  # rounded, if what reads them is to
        for binding in self.flow.bindings:
            values[binding.var] = self._evaluate(binding, values, read)
        return [read.get(leaf, values[leaf]) for leaf in self._output_variables()]

    def _operand(self, expr: Expr, values: Mapping[Var, torch.Tensor], read: dict[Var, torch.Tensor]):
        """What a call reads: a tensor, a tuple of them, or None for an attribute that is written as an argument."""
        if isinstance(expr, relax.Tuple):
            fields = tuple(self._operand(field, values, read) for field in expr.fields)
            return None if any(field is None for field in fields) else fields
        if not isinstance(expr, Var):
            return self._constant(expr)
        if expr not in read:
            quantizer = self.quantizers.activations.get(expr.name)
            read[expr] = values[expr] if quantizer is None else rounded(values[expr], quantizer)
        return read[expr]

    def _output_variables(self) -> Sequence[Var]:
        return [leaf for output in self.flow.outputs for leaf in leaves(output)]

    def _evaluate(self, binding: relax.VarBinding, values: Mapping[Var, torch.Tensor], read: dict[Var, torch.Tensor]):
        value = binding.value
        if isinstance(value, relax.TupleGetItem):
            return self._operand(value.tuple_value, values, read)[value.index]
        if not isinstance(value, relax.Call):
            return self._operand(value, values, read)
        trained, rule = self._trained.get(binding.var.name), RULES[op_name(value)]
        try:
            if trained is not None:
                return rule(value, self._operand(value.args[0], values, read), *trained())
            operands = [self._operand(arg, values, read) for arg in value.args]
            return rule(value, *(operand for operand in operands if operand is not None))
        except NotImplementedError as error:
            where = f"layer '{self._layers.get(binding.var.name, binding.var.name)}'"
            raise ModelError(where, str(error), "what PyTorch can be told to do here", "leave it out") from error

    def _constant(self, expr: Expr) -> torch.Tensor | None:
        if expr not in self._constants:
            array = const_value(expr)
            self._constants[expr] = None if array is None else torch.from_numpy(array.copy())
        return self._constants[expr]

    def keep_within_range(self) -> None:
        """After a step of training: no weight leaves the levels of its channel."""
        for weight in self.weights:
            weight.keep_within_range()

    def trained_quantizers(self) -> Quantizers:
        """Its quantisers with the trained integers and biases; without ways to compute by tiles."""
        weights = {name: weight.quantizer() for name, weight in self._trained.items()}
        return Quantizers(dict(self.quantizers.activations), weights, dict(self.quantizers.pixels))
