"""The weights of a whole network, rounded for what its layers read on calibration data (see `learned_rounding`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import tvm
from tqdm import tqdm
from tvm import relax

from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.quantizers import Quantizers, WeightQuantizer
from tvm_int8.quantization.calibrate import Run
from tvm_int8.quantization.learned_rounding import learn_rounding
from tvm_int8.quantization.output_noise import Batch
from tvm_int8.quantization.second_moments import SecondMoments


def learn_weights(
    mod: tvm.IRModule,
    quantizers: Quantizers,
    network: Run,
    batches: Sequence[Batch],
    limit: int = 127,
    correct_bias: bool = True,
    progress: bool = True,
) -> Quantizers:
    """Round all weights again, their scales left as they are.

    Parameters
    ----------
    mod : IRModule
        Canonical float module.
    quantizers : Quantizers
        Of that module.
    network : callable
        The float network: takes a batch, returns at least the tensors that convolutions read, by name.
    batches : sequence of batches
        Some tens of typical inputs.
    limit : int
        Largest magnitude of a weight's integer.
    correct_bias : bool
        Take what the errors left add on average out of the layers' results.
    progress : bool

    Returns
    -------
    Quantizers
        Transposed convolutions, and layers with more inputs than `second_moments.LARGEST`, as they were.
    """
    flow = Dataflow(mod)
    calls = {b.var.name: b.value for b in flow.bindings if b.var.name in quantizers.weights}
    moments = {name: SecondMoments(call, len(batches)) for name, call in calls.items() if SecondMoments.applies(call)}
    bar = {"unit": "batch", "disable": None if progress else True}
    for batch in tqdm(batches, "look at layers", **bar):
        tensors = network(batch)
        for name, found in moments.items():
            found.update(_read(calls[name], tensors, quantizers))
    learned = dict(quantizers.weights)
    for name, found in tqdm(moments.items(), "round weights", **{**bar, "unit": "layer"}):
        learned[name] = _learn(calls[name], quantizers.weights[name], found, limit, correct_bias)
    return replace(quantizers, weights=learned)


def _read(call: relax.Call, tensors: Mapping[str, np.ndarray], quantizers: Quantizers) -> np.ndarray:
    """What a convolution multiplies its weights with, float32 [N, C, H, W]."""
    name = call.args[0].name
    values, quantizer, divisor = tensors[name], quantizers.activations.get(name), quantizers.divisor(call)
    if quantizer is not None:
        values = quantizer.rounded(values)
    if divisor is not None:
        values = values / divisor.reshape(1, -1, 1, 1)
    if name in quantizers.pixels:
        values = values + quantizers.pixels[name].rest.reshape(1, -1, 1, 1)
    return values.astype(np.float32)


def _learn(
    call: relax.Call, weight: WeightQuantizer, moments: SecondMoments, limit: int, correct_bias: bool
) -> WeightQuantizer:
    groups, outputs = int(call.attrs.groups), weight.values.shape[0]
    scale = weight.scale.reshape(-1, 1, 1, 1) if weight.scale.ndim else weight.scale
    exact = (weight.exact / scale).reshape(groups, outputs // groups, -1)
    met = moments.central if correct_bias else moments.products  # what is the same everywhere is corrected anyway
    rows = [learn_rounding(*pair, limit) for pair in zip(exact, met, strict=True)]
    learned = replace(weight, values=np.stack(rows).reshape(weight.values.shape).astype(np.int8))
    if not correct_bias:
        return replace(learned, correction=None)
    error = (learned.real - weight.exact).reshape(groups, outputs // groups, -1)
    correction = -np.einsum("gok,gk->go", error, moments.mean).reshape(1, -1, 1, 1)
    return replace(learned, correction=correction.astype(np.float32))
