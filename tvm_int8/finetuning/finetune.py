"""`tvm_int8.finetune`: a quantised network goes back to training, with the scales, bits and rounding that it has."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import onnx

from tvm_int8.errors import ConfigError, ModelError
from tvm_int8.onnx_export import export_onnx
from tvm_int8.option_checks import check_number, invalid
from tvm_int8.quantized_model import QuantizedModel


@dataclass(frozen=True, eq=False)
class FineTuned:
    """What `tvm_int8.finetune` returns.

    Attributes
    ----------
    quantized : QuantizedModel
        The trained network; `tvm_int8.compile` takes it as its model.
    losses : tuple of float
        The mean loss of each epoch.
    """

    quantized: QuantizedModel
    losses: tuple[float, ...] = field(default=())

    @property
    def model(self) -> onnx.ModelProto:
        """The trained network as QDQ ONNX: what ``quantized.to_onnx()`` returns; `compile` takes it as it is."""
        return self.quantized.to_onnx()

    def to_onnx(self, path: str | os.PathLike[str] | None = None) -> onnx.ModelProto:
        """Write it as QDQ ONNX, as `QuantizedModel.to_onnx` does: scales and integers are in it."""
        return self.quantized.to_onnx(path)

    def float_model(self) -> onnx.ModelProto:
        """The network of float32 whose weights are what the trained integers stand for.

        For tools that quantise themselves. Quantised anew, it gets ranges and scales that are not those it was
        trained with.
        """
        from tvm_int8.finetuning.train import with_weights

        assert self.quantized.quantizers is not None
        return export_onnx(with_weights(self.quantized.float_mod, self.quantized.quantizers, corrections=True))


def finetune(
    quantized: QuantizedModel,
    data: Any,
    labels: Any = None,
    *,
    epochs: int = 10,
    learning_rate: float = 2e-3,
    batch_size: int = 64,
    distillation: float = 0.5,
    augment: Callable[..., Any] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> FineTuned:
    """Train the weights and biases of a quantised network, rounded as the compiled network rounds them.

    Needs PyTorch: ``pip install tvm_int8[finetune]``. It runs on as many threads as PyTorch is told to use. Scales,
    zero points and bits stay; layers in FP32 do, too. Gradients pass straight through rounding.

    Parameters
    ----------
    quantized : QuantizedModel
        What `tvm_int8.quantize` returned for a float model, or `finetune` before.
    data : iterable of inputs, array or path (.npz, .npy)
        Training inputs, preprocessed as for inference, in the forms `compile` takes calibration data in. They are kept
        in memory.
    labels : int array [samples], or [samples, H, W] for a class per pixel, or path of an .npy; optional
        Classes of the first output, along its axis 1; 255 or -1 where there is none. None: the network learns to do as
        the FP32 network does.
    epochs : int
        How often every sample is seen.
    learning_rate : float
        About what a weight moves in a step, as a share of half its channel's range; it rises to this in the first tenth
        of all steps and falls along a cosine to 0.
    batch_size : int
        In batches of the model (samples, where its batch size is 1).
    distillation : float
        Share of the FP32 network's outputs in the loss where there are labels, 0 to 1; without, they are all of it.
    augment : callable, optional
        ``augment(batch, rng)`` returns the batch, a dict of input name -> array, changed at random (flipped, shifted).
    checkpoint : path, optional
        Where the state is kept, every half a minute and at the end of every epoch.
    resume : bool
        Go on from that file if it is there; the result is that of a training that was not stopped.
    seed : int
        Of the order of samples, and of `augment`.
    progress : bool
        Show a progress bar.

    Returns
    -------
    FineTuned

    Raises
    ------
    ModelError
        Not a network that `quantize` quantised, or with operators that have no form in PyTorch here.
    CalibrationError
        Data or labels do not fit the model, or training diverges.
    ConfigError
        An option is invalid, or PyTorch is missing.
    ArtifactError
        The checkpoint is of another training, or cannot be read or written.
    """
    _check(quantized)
    expected = "a positive whole number"
    for option, value in (("epochs", epochs), ("batch_size", batch_size)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise invalid(option, value, expected)
    check_number("learning_rate", learning_rate, lambda v: 0 < v < math.inf, "a positive number, like 0.002")
    check_number("distillation", distillation, lambda v: 0 <= v <= 1, "a share, from 0 to 1")
    if importlib.util.find_spec("torch") is None:
        found, action = "PyTorch is not installed", "pip install tvm_int8[finetune]"
        raise ConfigError("fine-tuning", found, "the package torch", action)
    from tvm_int8.finetuning.options import Options
    from tvm_int8.finetuning.train import train

    options = Options(epochs, float(learning_rate), batch_size, float(distillation), seed)
    trained, losses = train(quantized, data, labels, options, augment, checkpoint, resume, progress)
    return FineTuned(trained, tuple(losses))


def _check(quantized: Any) -> None:
    action = "pass what tvm_int8.quantize(model, calibration, config) returned"
    if not isinstance(quantized, QuantizedModel):
        raise ModelError("fine-tuning", f"a {type(quantized).__name__}", "a QuantizedModel", action)
    if quantized.quantizers is None:
        found = "a network that is not quantised, or came quantised"
        raise ModelError("fine-tuning", found, "one that was quantised here", f"{action} for the float model")
