import math

import numpy as np
import pytest

from tvm_int8.quantization.fitted_range import fitted_range
from tvm_int8.quantization.observers import HistogramObserver
from tvm_int8.quantization.optimal_step import optimal_step

STEPS_8 = {density: 255 / 2 * optimal_step(density, 8)[0] for density in ("gaussian", "laplacian")}
STEPS_9 = {density: 255 * optimal_step(density, 9)[0] for density in ("gaussian", "laplacian")}
OUTLIER = 40.0  # so that the range is not held by what was observed


def _observed(values):
    observer = HistogramObserver("t")
    observer.update(np.asarray(values, np.float32), 0)
    return observer


def _drawn(density, sigma=1.0):
    rng = np.random.default_rng(0)
    if density == "gaussian":
        return sigma * rng.standard_normal(1_000_000)
    return sigma / math.sqrt(2) * rng.laplace(size=1_000_000)


@pytest.mark.parametrize("density", ["gaussian", "laplacian"])
@pytest.mark.parametrize("sigma", [1.0, 1e-3])
@pytest.mark.parametrize("mean", [0.0, 0.5])
def test_both_signs_get_the_optimal_step_around_their_mean(density, sigma, mean):
    values = np.append(_drawn(density, sigma) + mean * sigma, [OUTLIER * sigma, -OUTLIER * sigma])
    expected = sigma * mean - sigma * STEPS_8[density], sigma * mean + sigma * STEPS_8[density]
    np.testing.assert_allclose(fitted_range(_observed(values), density), expected, rtol=0.01)


@pytest.mark.parametrize("density", ["gaussian", "laplacian"])
@pytest.mark.parametrize("sign", [1, -1])
def test_one_sign_is_half_a_density(density, sign):
    values = np.append(np.maximum(_drawn(density), 0), OUTLIER)
    low, high = fitted_range(_observed(sign * values), density)
    assert max(-low, high) == pytest.approx(STEPS_9[density], rel=0.01)
    assert min(-low, high) == 0.0


def test_the_published_range_of_a_gaussian():
    values = np.append(_drawn("gaussian"), [OUTLIER, -OUTLIER])
    low, high = fitted_range(_observed(values), "gaussian")
    assert (high - low) / 255 == pytest.approx(0.0308, rel=0.01)


@pytest.mark.parametrize("density", ["gaussian", "laplacian"])
def test_never_wider_than_what_was_observed(density):
    values = np.random.default_rng(0).uniform(-1, 3, 10_000)
    observer = _observed(values)
    assert fitted_range(observer, density) == (observer.low, observer.high)


def test_symmetric_densities_are_around_zero():
    values = np.append(_drawn("gaussian") + 1.0, [OUTLIER, -OUTLIER])
    low, high = fitted_range(_observed(values), "gaussian", symmetric=True)
    assert low == -high
    assert high == pytest.approx(math.sqrt(2) * STEPS_8["gaussian"], rel=0.01)


@pytest.mark.parametrize("density", ["gaussian", "laplacian"])
@pytest.mark.parametrize("value", [0.0, 3.7, -3.7, 1e-45, -1e-45, 3e38])
def test_a_constant_keeps_its_value(density, value):
    found = fitted_range(_observed(np.full(10, value)), density)
    assert found == (np.float32(value), np.float32(value))
