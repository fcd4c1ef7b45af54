import numpy as np
import pytest

from tvm_int8.quantization.observers import HistogramObserver
from tvm_int8.quantization.range_noise import CLIPPING_WEIGHT, RangeNoise
from tvm_int8.quantization.scale_zero_point import scale_zero_point


def _observed(values):
    observer = HistogramObserver("t")
    observer.update(values, 0)
    return RangeNoise(observer.histogram())


def _measured(values, low, high, symmetric=False):
    """Squared error of really rounding and clipping the values."""
    scale, zero_point = scale_zero_point(low, high, symmetric=symmetric)
    integers = np.clip(np.rint(values / scale) + zero_point, 0, 255)
    return float(((values - scale * (integers - zero_point)) ** 2).sum())


@pytest.mark.parametrize("ends", [(-4.0, 4.0), (-2.0, 2.0), (-3.0, 1.0), (-5.0, 5.0)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_predicts_what_quantising_costs(ends, symmetric):
    values = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
    predicted = _observed(values).of(*ends, symmetric, clipping_weight=1.0)
    assert predicted == pytest.approx(_measured(values, *ends, symmetric), rel=0.05)


def test_values_far_below_a_step_cost_their_own_square():
    values = np.append(np.random.default_rng(0).uniform(0.0005, 0.001, 10_000), 1000.0).astype(np.float32)
    noise = _observed(values[:-1])
    assert noise.of(0.0, 1000.0) == pytest.approx(float((values[:-1] ** 2).sum()), rel=0.01)
    assert noise.of(0.0, 1000.0) == pytest.approx(_measured(values[:-1], 0.0, 1000.0), rel=0.01)


def test_clipping_counts_more_than_rounding():
    values = np.full(100, 3.0, np.float32)
    noise = _observed(values)
    width = float(noise.below(np.array([4.0]))[0])
    assert noise.above(np.array([1.0]))[0] == pytest.approx(100 * 2.0**2, rel=0.01)
    assert width == pytest.approx(100 * 1.0, rel=0.01)
    rounding = noise.rounding(np.asarray(1.0))
    assert noise.of(0.0, 1.0) == pytest.approx(CLIPPING_WEIGHT * 400 + rounding, rel=0.01)


def test_zeros_cost_next_to_nothing():
    noise = _observed(np.append(np.zeros(1000), 1.0).astype(np.float32))
    assert noise.of(0.0, 1.0) <= 0.05 * 1000 * (1 / 255) ** 2 / 12
