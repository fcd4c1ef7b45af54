import numpy as np
import pytest

from tvm_int8.config import QuantizationConfig
from tvm_int8.errors import ConfigError
from tvm_int8.quantization import calibrators
from tvm_int8.quantization.calibrators import Calibrator, calibrator_names, make_calibrator, register_calibrator
from tvm_int8.quantization.observers import HistogramObserver, MinMaxObserver
from tvm_int8.quantization.range_noise import RangeNoise

METHODS = ("minmax", "moving_average", "percentile", "mse", "entropy", "gaussian", "laplacian", "auto")
CLIPPING = tuple(method for method in METHODS if method not in ("minmax", "moving_average"))


def _observed(*batches):
    observer = HistogramObserver("t")
    for index, batch in enumerate(batches):
        observer.update(np.asarray(batch), index)
    return observer


def _range(values, **options):
    return make_calibrator(QuantizationConfig(**options)).choose_range(_observed(values))


def test_methods():
    assert set(calibrator_names()) == set(METHODS)


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


def test_moving_average_is_that_of_the_batches():
    batches = [[-1.0, 1.0], [-3.0, 0.0], [0.0, 101.0]]
    calibrator = make_calibrator(QuantizationConfig(method="moving_average"))
    low = 0.99 * (0.99 * -1.0 + 0.01 * -3.0) + 0.01 * 0.0
    high = 0.99 * (0.99 * 1.0 + 0.01 * 0.0) + 0.01 * 101.0
    assert calibrator.choose_range(_observed(*batches)) == pytest.approx((low, high))
    assert calibrator.choose_range(_observed(batches[2])) == (0.0, 101.0)


@pytest.mark.parametrize("method", CLIPPING)
@pytest.mark.parametrize("rectified", [False, True])
def test_a_gaussian_keeps_three_to_five_sigmas(method, rectified):
    values = np.random.default_rng(0).standard_normal(300_000)
    low, high = _range(np.maximum(values, 0) if rectified else values, method=method)
    assert 3.0 < high < 5.0
    assert low == pytest.approx(0.0, abs=1e-3) if rectified else -5.0 < low < -3.0


@pytest.mark.parametrize("method", [m for m in CLIPPING if m not in ("mse", "auto")])
@pytest.mark.parametrize("outlier", [50.0, -50.0])
def test_an_outlier_does_not_set_the_range(method, outlier):
    values = np.append(np.random.default_rng(0).standard_normal(300_000), outlier)
    low, high = _range(values, method=method)
    assert -8.0 < low < -3.0 < 3.0 < high < 8.0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("zeros", np.zeros(100)),
        ("constant", np.full(100, 3.7)),
        ("negative constant", np.full(100, -3.7)),
        ("tiny", np.random.default_rng(0).standard_normal(5000) * 1e-37),
        ("subnormal", np.random.default_rng(0).standard_normal(5000) * 1e-41),
        ("huge", np.random.default_rng(0).standard_normal(5000) * 5e37),
        ("negative", -np.random.default_rng(0).exponential(size=5000) - 0.1),
        ("negative from zero", -np.maximum(np.random.default_rng(0).standard_normal(5000), 0)),
        ("off zero", np.random.default_rng(0).uniform(1000, 1001, 5000)),
        ("one value", np.array([2.0])),
    ],
)
def test_every_range_is_ordered_and_within_what_was_seen(method, symmetric, kind, values):
    observer = _observed(values)
    name, low, high = make_calibrator(QuantizationConfig(method=method, activation_symmetric=symmetric)).choose(
        observer
    )
    bound = max(abs(observer.low), abs(observer.high))
    assert low <= high, kind
    if symmetric and observer.low < 0:
        assert -bound <= low and high <= bound
    else:
        assert min(observer.low, 0.0) <= low and high <= max(observer.high, 0.0)
    assert name.split(": ")[0] == method
    if kind == "negative" and not symmetric:
        assert high <= 0.0 and low < -3.0


def test_least_squares_clips_rare_outliers_and_keeps_compact_ranges():
    rng = np.random.default_rng(0)
    compact, heavy = rng.uniform(-1, 1, 100_000).astype(np.float32), rng.standard_normal(400_000).astype(np.float32)
    heavy[:2] = 12.0, -11.0
    assert _range(compact, method="mse") == pytest.approx((-1.0, 1.0), abs=0.05)
    low, high = _range(heavy, method="mse")
    assert -9.0 < low < -2.5 and 2.5 < high < 9.0


@pytest.mark.parametrize("symmetric", [False, True])
def test_least_squares_beats_every_other_method_but_for_its_grid(symmetric):
    rng = np.random.default_rng(0)
    for values in (rng.standard_normal(50_000), rng.laplace(size=50_000) + 0.3, rng.standard_t(3, 50_000)):
        observer = _observed(values)
        noise = RangeNoise(observer.histogram())
        costs = {}
        for method in METHODS:
            calibrator = make_calibrator(QuantizationConfig(method=method, activation_symmetric=symmetric))
            costs[method] = noise.of(*calibrator.choose_range(observer), symmetric)
        assert costs["mse"] <= 1.02 * min(costs.values())
        assert costs["auto"] == min(costs.values())


def test_symmetric_least_squares_has_zero_in_the_middle():
    values = np.random.default_rng(0).standard_normal(50_000) + 0.5
    low, high = _range(values, method="mse", activation_symmetric=True)
    assert low == -high
    assert _range(np.abs(values), method="mse", activation_symmetric=True)[0] == 0.0


def test_auto_proposes_the_ranges_of_all_others():
    observer = _observed(np.random.default_rng(0).standard_normal(10_000))
    auto = make_calibrator(QuantizationConfig(method="auto", percentile=99))
    ranges = auto.candidates(observer)
    assert list(ranges) == [name for name in calibrator_names() if name != "auto"]
    for name, ends in ranges.items():
        assert ends == make_calibrator(QuantizationConfig(method=name, percentile=99)).choose_range(observer)


@pytest.mark.parametrize(
    ("score", "winner"),
    [
        (lambda ends: ends[0] - ends[1], "minmax"),
        (lambda ends: abs(ends[1] - 1.96), "percentile"),
        (lambda ends: 0.0, "minmax"),
    ],
)
def test_auto_chooses_by_the_score_it_is_given(score, winner):
    observer = _observed(np.random.default_rng(0).standard_normal(10_000))
    auto = make_calibrator(QuantizationConfig(method="auto", percentile=95))
    name, *ends = auto.choose(observer, score)
    assert name == f"auto: {winner}"
    assert tuple(ends) == auto.candidates(observer)[winner]


def test_a_registered_calibrator_is_a_valid_method_and_a_candidate(monkeypatch):
    monkeypatch.setattr(calibrators, "_CALIBRATORS", dict(calibrators._CALIBRATORS))

    @register_calibrator("half")
    class HalfCalibrator(Calibrator[MinMaxObserver]):
        observer_class = MinMaxObserver

        def choose_range(self, observer):
            return observer.low / 2, observer.high / 2

    assert "half" in calibrator_names()
    assert _range([-2.0, 4.0], method="half") == (-1.0, 2.0)
    observer = _observed([-2.0, 4.0])
    assert make_calibrator(QuantizationConfig(method="half")).choose(observer) == ("half", -1.0, 2.0)
    assert make_calibrator(QuantizationConfig(method="auto")).candidates(observer)["half"] == (-1.0, 2.0)
    with pytest.raises(ValueError, match="already registered"):
        register_calibrator("half")(HalfCalibrator)


def test_a_method_that_is_no_longer_registered(monkeypatch):
    config = QuantizationConfig(method="percentile")
    monkeypatch.setattr(calibrators, "_CALIBRATORS", {"minmax": calibrators.MinMaxCalibrator})
    with pytest.raises(ConfigError, match="'percentile'; expected one of 'minmax'"):
        make_calibrator(config)
