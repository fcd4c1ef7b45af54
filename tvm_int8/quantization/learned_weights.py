"""The weights of a whole network, rounded for what its layers read on calibration data (see `learned_rounding`)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
import tvm
from tqdm import tqdm
from tvm import relax

from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.quantizers import Quantizers, WeightQuantizer
from tvm_int8.quantization.calibrate import Run
from tvm_int8.quantization.learned_rounding import Rounding
from tvm_int8.quantization.output_noise import Batch
from tvm_int8.quantization.second_moments import SecondMoments
from tvm_int8.quantization.weights import weight_limit

SCALE_TURNS = 3
"""How often codes of few bits are rounded, for scales that fit the ones before."""


def learn_weights(
    mod: tvm.IRModule,
    quantizers: Quantizers,
    network: Run,
    batches: Sequence[Batch],
    correct_bias: bool = True,
    progress: bool = True,
    names: Collection[str] | None = None,
) -> Quantizers:
    """Round weights again: their scales left as they are, but for those of few bits, which fit the new integers.

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
    correct_bias : bool
        Take what the errors left add on average out of the layers' results.
    progress : bool
    names : collection of str, optional
        Only the convolutions that bind these.

    Returns
    -------
    Quantizers
        Transposed convolutions, and layers with more inputs than `second_moments.LARGEST`, as they were.
    """
    flow = Dataflow(mod)
    calls = {b.var.name: b.value for b in flow.bindings if b.var.name in (names or quantizers.weights)}
    moments = observe_moments(calls, quantizers, network, batches, progress)
    learned = dict(quantizers.weights)
    for name, found in tqdm(moments.items(), "round weights", unit="layer", disable=None if progress else True):
        learned[name] = LearnedLayer(calls[name], found, correct_bias)(quantizers.weights[name])
    return replace(quantizers, weights=learned)


def observe_moments(
    calls: Mapping[str, relax.Call],
    quantizers: Quantizers,
    network: Run,
    batches: Sequence[Batch],
    progress: bool = True,
) -> dict[str, SecondMoments]:
    """What convolutions read, by name; without those that `SecondMoments` does not apply to."""
    moments = {name: SecondMoments(call, len(batches)) for name, call in calls.items() if SecondMoments.applies(call)}
    for batch in tqdm(batches, "look at layers", unit="batch", disable=None if progress else True):
        tensors = network(batch)
        for name, found in moments.items():
            found.update(read_of(calls[name], tensors, quantizers))
    return moments


def read_of(
    call: relax.Call, tensors: Mapping[str, np.ndarray], quantizers: Quantizers, rounded: bool = True
) -> np.ndarray:
    """What a convolution multiplies its weights with, float32 [N, C, H, W]."""
    name = call.args[0].name
    values, quantizer, divisor = tensors[name], quantizers.activations.get(name), quantizers.divisor(call)
    if quantizer is not None and rounded:
        values = quantizer.rounded(values)
    if divisor is not None:
        values = values / divisor.reshape(1, -1, 1, 1)
    if name in quantizers.pixels:
        values = values + quantizers.pixels[name].rest.reshape(1, -1, 1, 1)
    return values.astype(np.float32)


class LearnedLayer:
    """Rounds the weight of one convolution, to any number of bits, for the moments of what it reads.

    Parameters
    ----------
    call : Call
        Of the float network.
    moments : SecondMoments
    correct_bias : bool
        Take what errors add on average out of the layer's results.
    """

    def __init__(self, call: relax.Call, moments: SecondMoments, correct_bias: bool):
        self.call, self.correct_bias, self.moments = call, correct_bias, moments
        met = moments.central if correct_bias else moments.products  # what is the same everywhere is corrected anyway
        self.groups = [Rounding(group) for group in met]

    def __call__(self, weight: WeightQuantizer) -> WeightQuantizer:
        """The weight with other integers, and, of few bits, other scales."""
        exact = self._by_group(weight.exact)
        wanted = self.moments.aim(exact, self.correct_bias)
        weight = _reaching(weight, exact, wanted)
        learned = self._integers(weight, wanted) if weight.lowest is None else self._codes(weight, wanted)
        if not self.correct_bias:
            return replace(learned, correction=None)
        delivered = np.einsum("gok,gk->go", self._by_group(learned.real), self.moments.mean)
        correction = np.einsum("gok,gk->go", exact, self.moments.exact_mean) - delivered
        return replace(learned, correction=correction.reshape(1, -1, 1, 1).astype(np.float32))

    def _integers(self, weight: WeightQuantizer, wanted: np.ndarray) -> WeightQuantizer:
        scale = weight.scale.reshape(-1, 1, 1, 1) if weight.scale.ndim else weight.scale
        exact = wanted / self._by_group(np.broadcast_to(scale, weight.exact.shape))
        limits = self._by_group(_limits(weight))
        rows = [group.learn(own, -most, most) for group, own, most in zip(self.groups, exact, limits, strict=True)]
        return replace(weight, values=np.stack(rows).reshape(weight.values.shape).astype(np.int8))

    def _codes(self, weight: WeightQuantizer, exact: np.ndarray) -> WeightQuantizer:
        """Few bits: round codes, then fit the scales to them by least squares, in turns."""
        outputs, levels = len(weight.values), weight.levels
        lowest, step, least, most, scale = (
            self._by_group(np.broadcast_to(array.reshape(-1, 1), (outputs, 1)).astype(np.float32))
            for array in (levels.lowest, levels.step, levels.least, levels.most, weight.scale)
        )
        for _ in range(SCALE_TURNS):
            codes = [
                group.learn((own / s - low) / up, *ends)
                for group, own, s, low, up, *ends in zip(
                    self.groups, exact, scale, lowest, step, least, most, strict=True
                )
            ]
            values = step * np.stack(codes) + lowest
            if not weight.scale.ndim:
                break
            fitted = [
                _fitted(group.moments, *own) for group, *own in zip(self.groups, exact, values, scale, strict=True)
            ]
            scale = np.where(step > 1, np.stack(fitted), scale)  # those of more bits are as good as they were
        scales = scale.reshape(-1) if weight.scale.ndim else weight.scale
        return replace(weight, values=values.reshape(weight.values.shape).astype(np.int8), scale=scales)

    def _by_group(self, array: np.ndarray) -> np.ndarray:
        """[O, ...] as [G, O / G, K]."""
        return array.reshape(len(self.groups), len(array) // len(self.groups), -1)


def _reaching(weight: WeightQuantizer, exact: np.ndarray, wanted: np.ndarray) -> WeightQuantizer:
    """With larger scales for channels [G, O / G, K] that are to become larger; those of few bits are fitted anyway."""
    if wanted is exact:
        return weight
    before, after = (np.abs(rows).max(2).reshape(-1) for rows in (exact, wanted))
    growth = np.maximum(after / np.maximum(before, np.finfo(np.float32).tiny), 1)
    growth = np.where((np.ravel(weight.levels.step) == 1) & (before > 0), growth, 1)
    grown = weight.scale * (growth if weight.scale.ndim else growth.max())
    return replace(weight, scale=np.asarray(grown, np.float32))


def _limits(weight: WeightQuantizer) -> np.ndarray:
    """The largest integer of every output channel, [O, 1]."""
    bits = weight.channel_bits or [weight.bits] * len(weight.values)
    return np.array([[weight_limit(own)] for own in bits], np.float32)


def _fitted(moments: np.ndarray, exact: np.ndarray, values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Scales [O, 1] with the least error of integers [O, K]; the old ones where that is none."""
    met = values @ moments
    power, fitted = (np.einsum("ok,ok->o", met, rows)[:, None] for rows in (values, exact))
    best = fitted / np.maximum(power, np.finfo(np.float32).tiny)
    return np.where(best >= np.finfo(np.float32).tiny, best, scale).astype(np.float32)
