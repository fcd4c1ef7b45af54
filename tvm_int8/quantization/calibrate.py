"""One sweep over the calibration data that collects what the chosen calibrators want to know of every tensor."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from tqdm import tqdm

from tvm_int8.config import QuantizationConfig
from tvm_int8.errors import CalibrationError
from tvm_int8.quantization.calibration_table import CalibrationTable, TensorRange
from tvm_int8.quantization.calibrators import Calibrator, Score, make_calibrator
from tvm_int8.quantization.observers import ChannelObserver, HistogramObserver, MinMaxObserver
from tvm_int8.quantization.scale_zero_point import covering_zero
from tvm_int8.quantization.transformed_statistics import TransformedObserver

Run = Callable[[dict[str, np.ndarray]], Mapping[str, np.ndarray]]


def collect(
    run: Run,
    batches: Iterable[dict[str, np.ndarray]],
    points: Sequence[str],
    config: QuantizationConfig | None = None,
    *,
    progress: bool = True,
    keep_histograms: bool = False,
    channel_points: Collection[str] = (),
    layers: Mapping[str, str] | None = None,
    scores: Mapping[str, Score] | None = None,
    tiled: Mapping[str, Sequence[tuple[int, int, int, int]]] | None = None,
) -> CalibrationTable:
    """Run the float network over all batches and choose a range for every quantisation point.

    Parameters
    ----------
    run : callable
        Takes a batch, input name -> array; returns at least the points, tensor name -> array.
    batches : iterable of dict
        Consumed once; `CalibrationBatches` makes them from what users have.
    points : sequence of str
        Names of the tensors to observe.
    config : QuantizationConfig, optional
        Which calibrators, and their options.
    progress : bool
        Show a progress bar where standard error is a terminal.
    keep_histograms : bool
        Make histograms of all points, whether their calibrators need them or not, and put them into the table.
    channel_points : collection of str
        Points whose channels (axis 1) are to be known one by one, too.
    layers : mapping of str to str, optional
        The layer that delivers a point, for the patterns of `config.methods`.
    scores : mapping of str to callable, optional
        What a range ``(low, high)`` of a point costs where it is read, for the method "auto"; it is called after the
        sweep. By default the error that the point's histogram predicts.
    tiled : mapping of str to sequence of (top, left, bottom, right), optional
        Tensors, points or not, that convolutions with these paddings may transform: looked at as such, too.

    Returns
    -------
    CalibrationTable
        The ranges, in the order of `points`.

    Raises
    ------
    CalibrationError
        When there is no batch, a point is missing from what `run` returns, or a value is NaN or infinite.
    """
    config, layers, scores = config or QuantizationConfig(), layers or {}, scores or {}
    calibrators = {name: make_calibrator(config, config.method_of(name, layers.get(name, ""))) for name in points}
    observers = {name: _observer(calibrators[name], name, keep_histograms) for name in points}
    channels = {name: ChannelObserver() for name in channel_points}
    tiles = {name: TransformedObserver(paddings) for name, paddings in (tiled or {}).items()}
    total = operator.length_hint(batches, 0) or None
    seen = 0
    # disable=None is tqdm's own rule: no bar unless it writes to a terminal.
    for batch in tqdm(batches, "calibrate", total, unit="batch", disable=None if progress else True):
        tensors = run(batch)
        _observe(tensors, observers, seen)
        for name, channel_observer in channels.items():
            channel_observer.update(tensors[name])
        for name, tile_observer in tiles.items():
            tile_observer.update(tensors[name])
        seen += 1
    if seen == 0:
        action = "pass at least one batch; a generator can be iterated only once"
        raise CalibrationError("calibration data", "no batch at all", "some 100 to 500 typical inputs", action)
    ranges = {}
    for name, observer in observers.items():
        found = _range(observer, *calibrators[name].choose(observer, scores.get(name)), config.activation_symmetric)
        histogram = observer.histogram() if keep_histograms else None
        statistics = channels[name].statistics() if name in channels else None
        ranges[name] = replace(found, histogram=histogram, channels=statistics)
    return CalibrationTable(ranges, {name: tile_observer.statistics() for name, tile_observer in tiles.items()})


def _observer(calibrator: Calibrator, name: str, keep_histograms: bool) -> MinMaxObserver:
    wanted = calibrator.observer_class
    return (HistogramObserver if keep_histograms and wanted is MinMaxObserver else wanted)(name)


def _observe(tensors: Mapping[str, np.ndarray], observers: Mapping[str, MinMaxObserver], batch: int) -> None:
    for name, observer in observers.items():
        if name not in tensors:
            raise CalibrationError(
                where=f"calibration batch {batch}, tensor {name!r}",
                found=f"not among the {len(tensors)} tensors the float network returned",
                expected="every quantisation point",
                action="observe only tensors the network computes",
            )
        observer.update(tensors[name], batch)


def _range(observer: MinMaxObserver, method: str, low: float, high: float, symmetric: bool) -> TensorRange:
    """The range, with what it cuts off once it contains zero, as that of integers does."""
    histogram, integers = observer.histogram(), covering_zero(low, high, symmetric)
    saturation = observer.share_outside(*integers)
    clipping = 0.0 if histogram is None or saturation == 0.0 else histogram.clipping_error(*integers)
    return TensorRange(low, high, method, observer.batches, clipping=clipping, saturation=saturation)
