"""How far the outputs of a quantised network are from those in FP32, and how often its decisions are right."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from benchmarks import metrics, onnx_graph
from tvm_int8.quantization.data import CalibrationBatches, InputSpec

Outputs = Sequence[Sequence[np.ndarray]]
"""All outputs of every batch."""


@dataclass(frozen=True)
class Result:
    """How far a network is from FP32.

    Attributes
    ----------
    sqnr_db : float
        Over all elements of all outputs.
    equal_decisions : float or None
        Share of decisions that are FP32's, in [0, 1]; None where nothing is decided.
    accuracy : float or None
        Share of decisions that are the labels, in [0, 1]; None without labels.
    """

    sqnr_db: float
    equal_decisions: float | None
    accuracy: float | None


def decisions(outputs: Sequence[np.ndarray]) -> np.ndarray:
    """Place of the largest element of the first output, for every image of a batch.

    Examples
    --------
    >>> decisions([np.array([[0.1, 0.9], [2.0, -1.0]])])
    array([1, 0])
    """
    first = outputs[0]
    return first.reshape(len(first), -1).argmax(1)


def judge(
    reference: Outputs,
    outputs: Outputs,
    labels: np.ndarray | None = None,
    decide: Callable[[Sequence[np.ndarray]], np.ndarray] | None = decisions,
) -> Result:
    """Compare outputs with FP32's and with labels.

    Parameters
    ----------
    reference, outputs : sequence of lists of arrays
        All outputs of every batch, in FP32 and of the network that is judged.
    labels : ndarray, optional
        What `decide` should return for all batches together; may go on behind the last one.
    decide : callable or None
        Makes decisions (classes of images, of pixels, ...) of a batch's outputs. None: nothing is decided.

    Raises
    ------
    ValueError
        Shapes of the outputs differ, or there are fewer labels than decisions.
    """
    sqnr_db = metrics.sqnr_db(*([value for batch in batches for value in batch] for batches in (reference, outputs)))
    if decide is None:
        return Result(sqnr_db, None, None)
    expected, found = (np.concatenate([decide(batch) for batch in batches]) for batches in (reference, outputs))
    equal = float(np.mean(found == expected))
    if labels is None:
        return Result(sqnr_db, equal, None)
    if len(labels) < len(found):
        raise ValueError(f"labels: found {len(labels)}, expected one for each of {len(found)} decisions")
    return Result(sqnr_db, equal, float(np.mean(found == labels[: len(found)])))


Batches = Sequence[Mapping[str, np.ndarray]]
"""Input name -> array, of each."""


@dataclass(frozen=True)
class Case:
    """A network and its data.

    Attributes
    ----------
    name : str
    model : onnx.ModelProto
        Delivers logits: a softmax at its end is left out.
    calibration, test : sequence of dict
        Batches, input name -> array.
    labels : ndarray or None
        The class of every test input.
    """

    name: str
    model: onnx.ModelProto
    calibration: Batches
    test: Batches
    labels: np.ndarray | None = None

    @classmethod
    def read(cls, files: argparse.Namespace, test_count: int | None = None) -> Case:
        """What the options of `add_files` name; all test batches, or so many."""
        model = onnx_graph.logits_model(onnx.load(files.model))
        labels = None if files.labels is None else np.load(files.labels)
        calibration, test = (load_batches(path, model) for path in (files.calibration, files.test))
        return cls(files.model.stem, model, calibration[: files.count], test[:test_count], labels)


def load_batches(path: Path, model: onnx.ModelProto) -> list[dict[str, np.ndarray]]:
    """Read the batches for a model from an .npz or .npy file, as `tvm-int8 calibrate` does."""
    shapes = onnx_graph.input_shapes(model)
    return list(CalibrationBatches(path, [InputSpec(name, tuple(shape)) for name, shape in shapes.items()]))


def add_files(parser: argparse.ArgumentParser) -> None:
    """Add the network and its data to a command."""
    parser.add_argument("model", type=Path, help="an .onnx file with static shapes")
    parser.add_argument("--calibration", type=Path, required=True, help=".npz or .npy of inputs")
    parser.add_argument("--test", type=Path, required=True, help=".npz or .npy of other inputs")
    parser.add_argument("--labels", type=Path, help=".npy with the class of every test input")
    parser.add_argument("--count", type=int, default=256, help="calibration batches, at most (default 256)")
