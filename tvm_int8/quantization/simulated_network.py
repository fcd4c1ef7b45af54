"""The float network with quantisers that can be switched and changed, without compiling it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import tvm
from tvm import relax

from tvm_int8 import pipeline
from tvm_int8.build import generate_code
from tvm_int8.kernel_op import constants_of, is_kernel, spec_of, tensor_of
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.groups import fusion_groups
from tvm_int8.passes.linear_layers import scale_inputs
from tvm_int8.passes.quantizers import ActivationQuantizer, Quantizers, WeightQuantizer
from tvm_int8.passes.simulate_quantization import parameter_values
from tvm_int8.quantization.observed_tensors import ObservedTensors
from tvm_int8.runtime.threads import effective_num_threads, run_on_threads
from tvm_int8.schedules.registry import deliver
from tvm_int8.schedules.rule import Constants, pad_channels
from tvm_int8.specs import Conv2d
from tvm_int8.target import parse_target

_REMEMBERED = 3


class SimulatedNetwork:
    """Compiled once for this CPU in float32; rounds activations and weights as it is told, everything at first.

    It computes what the integer network computes, but for the rounding of float32 sums.

    Parameters
    ----------
    mod : IRModule
        Canonical float module.
    quantizers : Quantizers
        Of that module.
    names : sequence of str
        Variables of `main` to return beside the outputs, before they are rounded.
    """

    def __init__(self, mod: tvm.IRModule, quantizers: Quantizers, names: Sequence[str] = ()):
        flow = Dataflow(mod)
        self.quantizers = quantizers
        self._current = Quantizers(dict(quantizers.activations), dict(quantizers.weights), quantizers.pixels)
        producers = {var.name: binding.value for var, binding in flow.producer.items()}
        self._calls = {name: producers[name] for name in quantizers.weights}
        self._tensors = ObservedTensors(mod, names)
        self.outputs = [str(name) for name in mod["main"].attrs["output_names"]]
        simulated = pipeline.simulate([*quantizers.activations])(mod)
        self._build(pipeline.observe(self._tensors.names)(simulated))
        self._parameters = {name: self._rounding(name, q) for name, q in quantizers.activations.items()}
        self._known: dict[str, list[tuple]] = {name: [] for name in quantizers.weights}
        self._packed = {name: self._pack(name, q) for name, q in quantizers.weights.items()}

    def _build(self, mod: tvm.IRModule) -> None:
        resolved = parse_target("native")
        self._cpu = resolved.cpu
        delivers = {g.exit.name: g.anchor.var.name for g in fusion_groups(Dataflow(mod)) if g.anchor is not None}
        placed = pipeline.place()(mod)
        self._orders: dict[str, tuple[Conv2d, Constants]] = {}
        bindings = {}
        for binding in Dataflow(placed).bindings:
            call = binding.value
            if is_kernel(call) and isinstance(spec := spec_of(call), Conv2d):
                name = delivers[tensor_of(call)]
                self._orders[name] = spec, Constants.of(constants_of(call))
                bindings[name] = binding.var.name
        self._kernels = {name: deliver(*self._orders[name], self._cpu) for name in self.quantizers.weights}
        lowered = pipeline.schedule(resolved.cpu)(placed)
        counts = {bindings[name]: len(kernel.constants) for name, kernel in self._kernels.items()}
        lifted = pipeline.lift_constants(counts)(lowered)
        executable, _ = generate_code(lifted, resolved.tvm_target)
        self._machine = relax.VirtualMachine(executable, tvm.cpu())

    @property
    def macs(self) -> int:
        """Multiplications of its convolutions."""
        return sum(spec.macs for spec, _ in self._orders.values())

    # What is rounded

    def set_activation(self, name: str, quantizer: ActivationQuantizer | None) -> None:
        """Round a tensor with another quantiser, or not at all (None).

        Convolutions that mix its channels have its factor in their weights: set these afterwards.
        """
        self._parameters[name] = self._rounding(name, quantizer)
        if quantizer is not None:
            self._current.activations[name] = quantizer

    def set_weight(self, name: str, quantizer: WeightQuantizer | None) -> None:
        """Give a convolution other weights, or those of the float network (None)."""
        self._packed[name] = self._pack(name, quantizer)

    def apply(self, quantizers: Quantizers | None) -> None:
        """Round everything as `quantizers` say, or nothing (None)."""
        for name in self.quantizers.activations:
            self.set_activation(name, None if quantizers is None else quantizers.activations.get(name))
        for name in self.quantizers.weights:
            self.set_weight(name, None if quantizers is None else quantizers.weights.get(name))

    def _rounding(self, name: str, quantizer: ActivationQuantizer | None) -> list:
        return [tvm.runtime.tensor(array) for array in parameter_values(quantizer, self._tensors.shapes[name])]

    def _pack(self, name: str, quantizer: WeightQuantizer | None) -> list:
        """A kernel's constants; the last few are remembered, because searches go back and forth between them."""
        data = self._current.activations.get(self._calls[name].args[0].name)
        for known, known_data, packed in self._known[name]:
            if known is quantizer and (quantizer is None or known_data is data):
                return packed
        packed = self._pack_anew(name, quantizer)
        self._known[name] = [(quantizer, data, packed), *self._known[name][: _REMEMBERED - 1]]
        return packed

    def _pack_anew(self, name: str, quantizer: WeightQuantizer | None) -> list:
        kernel = self._kernels[name]
        arrays = list(kernel.constants)
        if quantizer is not None:  # a kernel is not built again for its weight, bias, ...
            assert kernel.pack_weight is not None
            arrays[0] = kernel.pack_weight(effective_weight(self._calls[name], quantizer, self._current))
            if quantizer.correction is not None:  # of every phase of a transposed convolution
                added = pad_channels(quantizer.correction.reshape(-1))
                arrays[1] = (arrays[1] + np.resize(added, arrays[1].shape)).astype(np.float32)
        return [tvm.runtime.tensor(np.ascontiguousarray(array)) for array in arrays]

    # Running

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one batch, input name -> array; returns outputs and what is observed, by name."""
        arguments = self._tensors.arguments(batch)
        for name in self.quantizers.activations:
            arguments += self._parameters[name]
        for name in self.quantizers.weights:
            arguments += self._packed[name]
        results = run_on_threads(lambda: self._machine["main"](*arguments), effective_num_threads(None))
        results = [results] if hasattr(results, "shape") else list(results)
        outputs = {name: np.from_dlpack(r) for name, r in zip(self.outputs, results, strict=False)}
        return {**outputs, **self._tensors.read(results[len(self.outputs) :], batch)}


def effective_weight(call: relax.Call, quantizer: WeightQuantizer, quantizers: Quantizers) -> np.ndarray:
    """The weight of a convolution of real data that the integers stand for, float32: its data not divided."""
    divisor = quantizers.divisor(call)
    real = quantizer.real if divisor is None else scale_inputs(call, quantizer.real, 1.0 / divisor)
    return real.astype(np.float32)
