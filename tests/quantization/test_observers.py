import time
import tracemalloc

import numpy as np
import pytest

from tvm_int8.errors import CalibrationError
from tvm_int8.quantization.observers import (
    AVERAGING_CONSTANT,
    EXPECTED_INPUTS,
    MAX_BINS,
    ChannelObserver,
    HistogramObserver,
    MinMaxObserver,
)


def _observed(batches, observer_class=HistogramObserver):
    observer = observer_class("conv1")
    for index, batch in enumerate(batches):
        observer.update(np.asarray(batch), index)
    return observer


def _distributions(seed):
    rng = np.random.default_rng(seed)
    size = int(rng.integers(100, 50_000))
    normal = rng.standard_normal(size) * 10.0 ** rng.uniform(-6, 6) + rng.uniform(-3, 3)
    return {
        "normal": normal,
        "relu": np.maximum(rng.standard_normal(size), 0),
        "laplace": rng.laplace(size=size),
        "uniform off zero": rng.uniform(1000, 1001, size),
        "negative": -rng.exponential(size=size) - 0.1,
        "integers": rng.integers(0, 256, size),
        "few values": rng.choice([-1.0, 0.0, 5.0], size),
        "heavy tail": rng.standard_t(1.5, size),
        "huge": rng.standard_normal(size) * 1e37,
        "tiny": rng.standard_normal(size) * 1e-37,
        "subnormal": rng.standard_normal(size) * 1e-41,
    }


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", _distributions(0))
def test_quantile_agrees_with_numpy(kind, seed):
    values = _distributions(seed)[kind].astype(np.float32)
    observer = _observed(np.array_split(values, 7))
    width = observer.histogram().width
    for percentile in (0, 0.01, 0.1, 1, 25, 50, 75, 99, 99.9, 99.99, 100):
        exact = np.percentile(values, percentile, method="nearest")
        assert abs(observer.quantile(percentile / 100) - exact) <= width
    # The bins resolve the range to 1/2048, unless float32's own spacing or its smallest normal number is wider.
    spacing = max(np.spacing(np.abs(values).max()), np.finfo(np.float32).tiny)
    assert width <= max((observer.high - observer.low) / (MAX_BINS // 2), spacing)


@pytest.mark.parametrize("kind", _distributions(0))
def test_histogram_is_exact_and_does_not_depend_on_the_batches(kind):
    values = _distributions(7)[kind].astype(np.float32)
    whole = _observed([values])
    shuffled = np.random.default_rng(0).permutation(values)
    growing = values[np.argsort(np.abs(values))]
    for batches in (np.array_split(shuffled, 13), np.array_split(growing, 40), [values[:1], values[1:]]):
        pieces = _observed(batches)
        assert pieces.histogram() == whole.histogram()
        assert (pieces.low, pieces.high, pieces.count) == (whole.low, whole.high, values.size)
    histogram = whole.histogram()
    edges = (histogram.first + np.arange(len(histogram.counts) + 1)) * histogram.width
    expected = np.diff(np.searchsorted(np.sort(values.astype(np.float64)), edges))
    np.testing.assert_array_equal(histogram.counts, expected)
    assert len(histogram.counts) <= MAX_BINS


def test_quantile_is_monotone_and_stays_inside():
    observer = _observed([_distributions(3)["heavy tail"]])
    quantiles = [observer.quantile(f) for f in np.linspace(0, 1, 500)]
    assert (quantiles[0], quantiles[-1]) == (observer.low, observer.high)
    assert quantiles == sorted(quantiles)


@pytest.mark.parametrize("value", [0.0, 3.7, -3.7, 1e-45, 3.4e38, -3.4e38])
def test_a_constant_tensor(value):
    observer = _observed([np.full(10, value), np.full(3, value)])
    assert observer.low == observer.high == observer.quantile(0.5) == np.float32(value)
    assert sum(observer.histogram().counts) == 13


def test_a_range_that_grows_over_all_magnitudes():
    observer = _observed([[10.0**e, -(10.0**e)] for e in range(-44, 39)])
    assert sum(observer.histogram().counts) == observer.count == 2 * 83
    assert observer.quantile(1.0) == np.float32(1e38)


def test_extremes_of_float32_do_not_overflow():
    largest = np.finfo(np.float32).max
    observer = _observed([[0.0], [-largest, largest]])
    assert (observer.low, observer.high) == (-largest, largest)
    assert abs(observer.quantile(0.5)) <= observer.histogram().width


@pytest.mark.parametrize("observer_class", [MinMaxObserver, HistogramObserver])
def test_moving_averages_of_extremes(observer_class):
    batches = [[-2.0, 0.0, 4.0], [-4.0, 5.0], [0.0]]
    low, high = -2.0, 4.0
    for batch in batches[1:]:
        low += AVERAGING_CONSTANT * (min(batch) - low)
        high += AVERAGING_CONSTANT * (max(batch) - high)
    observer = _observed(batches, observer_class)
    assert (observer.average_low, observer.average_high) == pytest.approx((low, high))
    first = _observed(batches[:1], observer_class)
    assert (first.average_low, first.average_high) == (-2.0, 4.0)


@pytest.mark.parametrize("kind", _distributions(0))
def test_the_share_outside_of_a_range(kind):
    values = _distributions(5)[kind].astype(np.float32)
    observer = _observed(np.array_split(values, 3))
    assert observer.share_outside(observer.low, observer.high) == 0.0
    assert observer.share_outside(observer.high * 2 + 1, observer.high * 2 + 2) == 1.0
    most = max(observer.histogram().counts) / values.size  # what a single bin may hold is interpolated
    for low, high in ((0.1, 0.9), (0.0, 0.5), (0.3, 1.0)):
        ends = observer.quantile(low), observer.quantile(high)
        exact = np.mean((values < ends[0]) | (values > ends[1]))
        assert abs(observer.share_outside(*ends) - exact) <= 2 * most


def test_the_share_outside_is_exact_between_bins():
    observer = _observed([np.arange(1024) / 16])
    assert observer.share_outside(8.0, 16.0) == 1 - 128 / 1024
    assert _observed([[3.0, 3.0]]).share_outside(0.0, 2.0) == 1.0
    assert _observed([[3.0, 3.0]]).share_outside(0.0, 3.0) == 0.0
    assert _observed([[1.0, 2.0]], MinMaxObserver).share_outside(1.0, 2.0) == 0.0


@pytest.mark.parametrize("observer_class", [MinMaxObserver, HistogramObserver])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_and_leave_no_trace(observer_class, bad):
    observer = _observed([[1.0, 2.0]], observer_class)
    with pytest.raises(CalibrationError) as caught:
        observer.update(np.array([[5.0, bad]]), 17)
    for word in ("batch 17", "'conv1'", "1 NaN" if np.isnan(bad) else "1 infinite", "of 2 values"):
        assert word in str(caught.value)
    assert (observer.low, observer.high, observer.count, observer.batches) == (1.0, 2.0, 2, 1)


def test_float64_beyond_float32_is_infinite():
    with pytest.raises(CalibrationError, match="1 infinite"):
        _observed([[1e300]])


def test_an_empty_tensor_is_refused():
    with pytest.raises(CalibrationError, match="no values"):
        _observed([np.zeros((1, 0, 4))])


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8, np.uint8, np.int64, np.bool_])
def test_other_dtypes_and_strides(dtype):
    values = np.arange(24).reshape(2, 3, 4).astype(dtype)[:, ::2, ::-1]
    observer = _observed([values])
    assert (observer.low, observer.high, observer.count) == (float(values.min()), float(values.max()), 16)


def test_a_thousand_batches_take_no_more_memory_than_ten():
    rng = np.random.default_rng(0)
    batch = rng.standard_normal(4096).astype(np.float32)
    observers = [HistogramObserver(f"t{i}") for i in range(3)]
    tracemalloc.start()
    try:
        for index in range(1000):
            for observer in observers:
                observer.update(batch * np.float32(1 + index), index)
            if index == 10:
                tracemalloc.reset_peak()
                early = tracemalloc.get_traced_memory()[0]
        late, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert late - early < 10_000
    assert peak - early < 400_000
    assert observers[0].batches == 1000


def test_temporaries_stay_small_beside_a_large_tensor():
    values = np.zeros(4_000_000, np.float32)
    observer = _observed([values[:1]])
    tracemalloc.start()
    try:
        observer.update(values, 1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000


def test_a_million_values_take_milliseconds():
    values = np.random.default_rng(0).standard_normal(1_000_000).astype(np.float32)
    observer = _observed([values])
    seconds = []
    for index in range(5):
        start = time.perf_counter()
        observer.update(values, index)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.05  # 2 ms on Zen 4; the rest is room for a busy machine


def _channels(batches):
    observer = ChannelObserver()
    for batch in batches:
        observer.update(batch)
    return observer.statistics()


def test_channels_do_not_depend_on_how_inputs_were_batched():
    values = np.random.default_rng(0).standard_normal((12, 3, 5, 5)).astype(np.float32)
    whole, single = _channels([values]), _channels(values[:, None])
    for name in ("low", "high", "mean", "mean_square"):
        np.testing.assert_allclose(getattr(whole, name), getattr(single, name), rtol=1e-6)
    np.testing.assert_allclose(whole.mean, values.mean((0, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize("inputs", [8, 32, 128])
def test_channels_expect_what_few_inputs_did_not_reach(inputs):
    """The extremes of EXPECTED_INPUTS inputs, predicted from a few: within half of what the few fall short."""
    values = np.random.default_rng(1).exponential(size=(EXPECTED_INPUTS, 64, 400)).astype(np.float32)
    expected = np.asarray(_channels([values[:inputs]]).high).mean()
    seen, reached = values[:inputs].max((0, 2)).mean(), values.max((0, 2)).mean()
    assert abs(expected - reached) < 0.5 * (reached - seen)


def test_bounds_stay_bounds():
    values = np.random.default_rng(2).standard_normal((16, 4, 200)).clip(0, 0.5)
    statistics = _channels([values])
    assert set(statistics.low) == {0.0} and set(statistics.high) == {0.5}
    assert _channels([values[:1]]).high == (0.5,) * 4  # a single input says nothing about others
