"""One sweep over the calibration data that collects what the chosen calibrator wants to know of every tensor."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import numpy as np
from tqdm import tqdm

from tvm_int8.config import QuantizationConfig
from tvm_int8.errors import CalibrationError
from tvm_int8.quantization.calibration_table import CalibrationTable, TensorRange
from tvm_int8.quantization.calibrators import Calibrator, make_calibrator
from tvm_int8.quantization.observers import ChannelObserver, MinMaxObserver

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
        Which calibrator, and its options.
    progress : bool
        Show a progress bar where standard error is a terminal.
    keep_histograms : bool
        Put the histograms into the table, where the calibrator made any.
    channel_points : collection of str
        Points whose channels (axis 1) are to be known one by one, too.

    Returns
    -------
    CalibrationTable
        The ranges, in the order of `points`.

    Raises
    ------
    CalibrationError
        When there is no batch, a point is missing from what `run` returns, or a value is NaN or infinite.
    """
    calibrator = make_calibrator(config or QuantizationConfig())
    observers = {name: calibrator.observer_class(name) for name in points}
    channels = {name: ChannelObserver() for name in channel_points}
    total = operator.length_hint(batches, 0) or None
    seen = 0
    # disable=None is tqdm's own rule: no bar unless it writes to a terminal.
    for batch in tqdm(batches, "calibrate", total, unit="batch", disable=None if progress else True):
        tensors = run(batch)
        _observe(tensors, observers, seen)
        for name, channel_observer in channels.items():
            channel_observer.update(tensors[name])
        seen += 1
    if seen == 0:
        action = "pass at least one batch; a generator can be iterated only once"
        raise CalibrationError("calibration data", "no batch at all", "some 100 to 500 typical inputs", action)
    return CalibrationTable(
        {
            name: _range(calibrator, observer, keep_histograms, channels.get(name))
            for name, observer in observers.items()
        }
    )


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


def _range(
    calibrator: Calibrator, observer: MinMaxObserver, keep_histograms: bool, channels: ChannelObserver | None
) -> TensorRange:
    low, high = calibrator.choose_range(observer)
    histogram = observer.histogram()
    return TensorRange(
        low,
        high,
        calibrator.name,
        observer.batches,
        histogram if keep_histograms else None,
        None if channels is None else channels.statistics(),
        0.0 if histogram is None else histogram.clipping_error(low, high),
    )
