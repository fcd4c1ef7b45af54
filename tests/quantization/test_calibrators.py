import numpy as np
import pytest

from tvm_int8.config import QuantizationConfig
from tvm_int8.errors import ConfigError
from tvm_int8.quantization import calibrators
from tvm_int8.quantization.calibrators import Calibrator, calibrator_names, make_calibrator, register_calibrator
from tvm_int8.quantization.observers import HistogramObserver, MinMaxObserver


def _range(values, **options):
    calibrator = make_calibrator(QuantizationConfig(**options))
    observer = calibrator.observer_class("t")
    observer.update(np.asarray(values), 0)
    return calibrator.choose_range(observer)


def test_minmax_does_no_histogram_work():
    assert make_calibrator(QuantizationConfig(method="minmax")).observer_class is MinMaxObserver
    assert make_calibrator(QuantizationConfig(method="percentile")).observer_class is HistogramObserver


def test_minmax_is_the_extremes():
    assert _range([-3.0, 0.5, 8.0], method="minmax") == (-3.0, 8.0)


@pytest.mark.parametrize("percentile", [90, 99, 99.9, 99.99])
def test_percentile_clips_half_on_either_side(percentile):
    values = np.random.default_rng(1).standard_normal(200_000).astype(np.float32)
    low, high = _range(values, method="percentile", percentile=percentile)
    tail = (100 - percentile) / 2
    width = 2 * np.ptp(values) / 4096
    np.testing.assert_allclose([low, high], np.percentile(values, [tail, 100 - tail], method="nearest"), atol=width)


def test_percentile_ignores_an_outlier():
    values = np.append(np.random.default_rng(2).uniform(-1, 1, 100_000), 50.0)
    low, high = _range(values, method="percentile", percentile=99.99)
    assert -1.01 < low < -0.95
    assert 0.95 < high < 1.05


def test_percentile_100_is_minmax():
    values = np.random.default_rng(3).standard_normal(1000)
    assert _range(values, method="percentile", percentile=100) == _range(values, method="minmax")


def test_a_registered_calibrator_is_a_valid_method(monkeypatch):
    monkeypatch.setattr(calibrators, "_CALIBRATORS", dict(calibrators._CALIBRATORS))

    @register_calibrator("half")
    class HalfCalibrator(Calibrator[MinMaxObserver]):
        observer_class = MinMaxObserver

        def choose_range(self, observer):
            return observer.low / 2, observer.high / 2

    assert "half" in calibrator_names()
    assert _range([-2.0, 4.0], method="half") == (-1.0, 2.0)
    with pytest.raises(ValueError, match="already registered"):
        register_calibrator("half")(HalfCalibrator)


def test_a_method_that_is_no_longer_registered(monkeypatch):
    config = QuantizationConfig(method="percentile")
    monkeypatch.setattr(calibrators, "_CALIBRATORS", {"minmax": calibrators.MinMaxCalibrator})
    with pytest.raises(ConfigError, match="'percentile'; expected one of 'minmax'"):
        make_calibrator(config)


def test_least_squares_clips_rare_outliers_and_keeps_compact_ranges():
    rng = np.random.default_rng(0)
    compact, heavy = rng.uniform(-1, 1, 100_000).astype(np.float32), rng.standard_normal(400_000).astype(np.float32)
    heavy[:2] = 12.0, -11.0
    ranges = []
    for values in (compact, heavy):
        calibrator = make_calibrator(QuantizationConfig(method="mse"))
        observer = calibrator.observer_class("x")
        observer.update(values, 0)
        ranges.append(calibrator.choose_range(observer))
    assert ranges[0] == pytest.approx((-1.0, 1.0), abs=0.05)
    low, high = ranges[1]
    assert -9.0 < low < -2.5 and 2.5 < high < 9.0
