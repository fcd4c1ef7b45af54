"""`tvm_int8.mixed_precision`: the fewest layers in FP32 with which a network is as accurate as the user wants."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from tvm_int8 import api
from tvm_int8.config import QuantizationConfig
from tvm_int8.errors import ConfigError
from tvm_int8.quantization.mixed_precision import by_worth, fewest
from tvm_int8.quantization.quantize import Quantization
from tvm_int8.quantized_model import QuantizedModel
from tvm_int8.report import table
from tvm_int8.runtime import CompiledModule

Evaluate = Callable[[CompiledModule], float]


@dataclass(frozen=True)
class Trial:
    """One module that was evaluated: the layers it computes in FP32, and what `evaluate` said."""

    layers: tuple[str, ...]
    accuracy: float


@dataclass(frozen=True)
class MixedPrecision:
    """The result of `mixed_precision`.

    Parameters
    ----------
    model : QuantizedModel
        To be compiled, or written as ONNX.
    layers : tuple of str
        Those in FP32 for the sake of accuracy.
    accuracy, target : float
        What `evaluate` said of the model compiled, and what was wanted.
    trials : tuple of Trial
        All that was evaluated, in order.
    """

    model: QuantizedModel
    layers: tuple[str, ...]
    accuracy: float
    target: float
    trials: tuple[Trial, ...]

    @property
    def reached(self) -> bool:
        """Whether the target was reached; if not, `model` is the most accurate that was tried."""
        return self.accuracy >= self.target

    @property
    def config(self) -> QuantizationConfig:
        """Options that give this model again: the layers are its `float_layers`."""
        assert self.model.config is not None
        return self.model.config

    def __str__(self) -> str:
        rows = [(str(i), str(len(t.layers)), f"{t.accuracy:.4f}") for i, t in enumerate(self.trials)]
        verdict = "reached" if self.reached else "not reached"
        ending = f"{self.accuracy:.4f} with {len(self.layers)} layers in FP32: {self.target:.4f} is {verdict}"
        layers = [f"  {layer}" for layer in self.layers]
        return "\n".join([table(("trial", "layers in FP32", "accuracy"), rows, {0, 1, 2}), ending, *layers])


def mixed_precision(
    model: Any,
    calibration: Any,
    evaluate: Evaluate,
    accuracy_target: float,
    quantization: QuantizationConfig | Mapping | str = api.DEFAULT,
    *,
    target: Any = "native",
    max_trials: int = 16,
    num_threads: int | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    input_dtype: str | None = None,
    input_mean: float | Sequence[float] | None = None,
    input_std: float | Sequence[float] | None = None,
    progress: bool = True,
) -> MixedPrecision:
    """Leave as few layers in FP32, by time lost, as an accuracy needs.

    Layers are ranked by how much noise they bring into the outputs for the time they would cost in FP32. How many of
    the first it takes is found by bisection, each candidate compiled and evaluated; then the most expensive of them are
    tried in INT8 again. Without a way to measure accuracy use ``QuantizationConfig(min_sqnr_db=...)``.

    Parameters
    ----------
    model, quantization, num_threads, input_shapes, input_dtype, input_mean, input_std, progress : as for `compile`
    calibration : iterable of inputs, array or path (.npz, .npy)
        Not a table: layers are ranked on the first of these inputs.
    evaluate : callable
        Takes a `CompiledModule`, returns its accuracy: the more the better.
    accuracy_target : float
        What is enough, on the scale of `evaluate`.
    target : as for `compile`
        Code for it must run on this machine.
    max_trials : int
        Evaluations at most; at least 1.

    Returns
    -------
    MixedPrecision
        The model with fewest layers in FP32 that reached the target, or the most accurate one found. So it is also
        after Ctrl-C, once one model has been evaluated.

    Raises
    ------
    TvmInt8Error
        One of its children, as for `compile`. What `evaluate` raises is passed on.
    """
    config = api.resolve_config(quantization)
    if config is None or max_trials < 1 or not math.isfinite(accuracy_target):
        found = f"quantization={quantization!r}, max_trials={max_trials}, accuracy_target={accuracy_target}"
        raise ConfigError("mixed_precision", found, "options of quantisation, at least one trial, a finite target")
    inputs = api.Inputs(input_shapes, input_dtype, input_mean, input_std)
    quantized, notes = api.quantize_for_measuring(model, calibration, config, inputs, progress)
    search = _Search(quantized, evaluate, accuracy_target, max_trials, notes, target, num_threads, progress)
    return search.run()


class _Search:
    def __init__(
        self,
        quantized: Quantization,
        evaluate: Evaluate,
        wanted: float,
        max_trials: int,
        notes: dict,
        target: Any,
        num_threads: int | None,
        progress: bool,
    ):
        self.quantized, self.evaluate, self.wanted, self.notes = quantized, evaluate, wanted, notes
        self.target, self.num_threads, self.progress = target, num_threads, progress
        self.left = max_trials
        self.trials: list[Trial] = []
        self.cost: dict[str, float] = {}

    def run(self) -> MixedPrecision:
        """Rank, bisect, prune; the best so far when there is no time left."""
        disable = None if self.progress else True
        with tqdm(total=self.left, desc="trials", unit="model", disable=disable) as self.bar:
            try:
                self._search()
            except KeyboardInterrupt:
                if not self.trials:
                    raise
            except _Exhausted:
                pass
        return self._result()

    def _search(self) -> None:
        if self._is_enough(()):
            return
        ranked = by_worth(self.quantized.sensitivity().measure(self.progress))
        self.cost = {layer.layer: layer.cost for layer in ranked}
        names = [layer.layer for layer in ranked]
        count = fewest(lambda k: self._is_enough(tuple(names[:k])), len(names))
        chosen = tuple(names[:count])
        if not self._is_enough(chosen):
            return
        for layer in sorted(chosen, key=lambda name: -self.cost[name]):
            others = tuple(name for name in chosen if name != layer)
            if self._is_enough(others):
                chosen = others

    def _is_enough(self, layers: tuple[str, ...]) -> bool:
        known = next((trial for trial in self.trials if set(trial.layers) == set(layers)), None)
        if known is None:
            if self.left == 0:
                raise _Exhausted
            self.left -= 1
            module = api.compile(self._model(layers), self.target, num_threads=self.num_threads)
            known = Trial(layers, float(self.evaluate(module)))
            self.trials.append(known)
            self.bar.update()
            self.bar.set_postfix_str(f"best {max(trial.accuracy for trial in self.trials):.4f}")
        return known.accuracy >= self.wanted

    def _model(self, layers: tuple[str, ...]) -> QuantizedModel:
        return api.quantized_model(self.quantized.without(layers), self.notes)

    def _result(self) -> MixedPrecision:
        enough = [trial for trial in self.trials if trial.accuracy >= self.wanted]
        if enough:
            best = min(enough, key=lambda trial: sum(self.cost.get(layer, 0.0) for layer in trial.layers))
        else:
            best = max(self.trials, key=lambda trial: trial.accuracy)
        return MixedPrecision(self._model(best.layers), best.layers, best.accuracy, self.wanted, tuple(self.trials))


class _Exhausted(Exception):
    """There are no trials left."""
