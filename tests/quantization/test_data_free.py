import numpy as np
import pytest

from tvm_int8.errors import CalibrationError
from tvm_int8.quantization.data_free import (
    CalibrationWarning,
    range_from_batch_norm,
    synthetic_batches,
    warn_data_free,
)

SHAPES = {"image": (2, 3, 32, 48), "vector": (4, 10), "scalar": (1, 1)}


def test_shapes_dtypes_and_count():
    batches = list(synthetic_batches(SHAPES, count=3))
    assert len(batches) == 3
    for batch in batches:
        assert {name: array.shape for name, array in batch.items()} == SHAPES
        assert all(array.dtype == np.float32 and np.isfinite(array).all() for array in batch.values())


def test_the_seed_decides():
    first, again, other = (next(synthetic_batches(SHAPES, 1, seed))["image"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    one, two = (batch["image"] for batch in synthetic_batches(SHAPES, 2))
    assert not np.array_equal(one, two)


def test_each_sample_is_standardised():
    batch = next(synthetic_batches(SHAPES, 1))
    for name, axes in (("image", (1, 2, 3)), ("vector", 1)):
        np.testing.assert_allclose(batch[name].mean(axes), 0, atol=1e-5)
        np.testing.assert_allclose(batch[name].std(axes), 1, rtol=1e-5)


@pytest.mark.parametrize("shape", [(), (5,), (1, 3, 1, 1), (1, 1, 1, 1), (1, 2, 1, 7), (1, 3, 7, 5), (2, 3, 4, 5, 6)])
def test_unusual_shapes(shape):
    array = next(synthetic_batches({"x": shape}, 1))["x"]
    assert array.shape == shape
    assert np.isfinite(array).all()


def test_images_are_smooth_and_their_channels_related():
    image = next(synthetic_batches({"x": (1, 3, 64, 64)}, 1))["x"][0]
    neighbours = np.corrcoef(image[:, :, 1:].ravel(), image[:, :, :-1].ravel())[0, 1]
    channels = np.corrcoef(image[0].ravel(), image[1].ravel())[0, 1]
    assert neighbours > 0.6
    assert channels > 0.4


def test_range_from_batch_norm():
    assert range_from_batch_norm(np.array([1.0, -0.5]), np.array([0.0, 4.0])) == (-6.0, 7.0)
    assert range_from_batch_norm(np.array([2.0]), np.array([1.0]), n=3.0) == (-5.0, 7.0)
    assert range_from_batch_norm(np.zeros(3), np.ones(3)) == (1.0, 1.0)


def test_range_from_batch_norm_holds_its_output():
    rng = np.random.default_rng(0)
    gamma, beta = rng.standard_normal(16), rng.standard_normal(16)
    low, high = range_from_batch_norm(gamma, beta)
    outputs = rng.standard_normal((10_000, 16)) * gamma + beta
    assert low <= outputs.min() <= outputs.max() <= high


@pytest.mark.parametrize(
    ("gamma", "beta"), [(np.ones(3), np.ones(4)), (np.ones(0), np.ones(0)), ([np.nan], [0.0]), ([1.0], [np.inf])]
)
def test_batch_norms_that_cannot_be(gamma, beta):
    with pytest.raises(CalibrationError, match="batch norm"):
        range_from_batch_norm(np.array(gamma), np.array(beta))


def test_the_warning_says_what_to_do_and_points_at_the_caller():
    def compile_without_data():
        warn_data_free()

    with pytest.warns(CalibrationWarning, match=r"Pass calibration=.*tvm_int8\.calibrate") as caught:
        compile_without_data()
    assert caught[0].filename == __file__
