from dataclasses import replace

import numpy as np
import pytest

from tvm_int8.passes.batch_norm_outputs import BatchNormOutput
from tvm_int8.quantization.data import InputSpec
from tvm_int8.quantization.data_free import (
    STANDARDISED,
    USUAL_VALUES,
    CalibrationWarning,
    InputValues,
    fit_input_values,
    synthetic_batches,
    warn_data_free,
)

SHAPES = {"image": (2, 3, 32, 48), "vector": (4, 10), "scalar": (1, 1)}
INPUTS = [InputSpec(name, shape) for name, shape in SHAPES.items()]
IMAGE = [InputSpec("x", (1, 3, 64, 64))]
BY_NAME = {values.name: values for values in USUAL_VALUES}


def test_shapes_dtypes_and_count():
    batches = list(synthetic_batches(INPUTS, count=3))
    assert len(batches) == 3
    for batch in batches:
        assert {name: array.shape for name, array in batch.items()} == SHAPES
        assert all(array.dtype == np.float32 and np.isfinite(array).all() for array in batch.values())


def test_the_seed_decides():
    first, again, other = (next(synthetic_batches(INPUTS, 1, seed=seed))["image"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    one, _, two = (batch["image"] for batch in synthetic_batches(INPUTS, 3))
    assert not np.array_equal(one, two)


def test_each_sample_is_standardised():
    for batch in synthetic_batches(INPUTS, 2):
        for name, axes in (("image", (1, 2, 3)), ("vector", 1)):
            np.testing.assert_allclose(batch[name].mean(axes), 0, atol=1e-5)
            np.testing.assert_allclose(batch[name].std(axes), 1, rtol=1e-5)


@pytest.mark.parametrize("shape", [(), (5,), (1, 3, 1, 1), (1, 1, 1, 1), (1, 2, 1, 7), (1, 3, 7, 5), (2, 3, 4, 5, 6)])
def test_unusual_shapes(shape):
    for batch in synthetic_batches([InputSpec("x", shape)], 2):
        assert batch["x"].shape == shape
        assert np.isfinite(batch["x"]).all()


def test_integer_inputs():
    specs = [InputSpec("bytes", (1, 3, 32, 32), "uint8"), InputSpec("index", (1, 4), "int64")]
    for batch in synthetic_batches(specs, 2, BY_NAME["0..1"]):
        assert batch["bytes"].dtype == np.uint8
        assert np.ptp(batch["bytes"]) > 120
        assert batch["index"].dtype == np.int64
        assert not batch["index"].any()


def test_images_are_smooth_and_their_channels_related():
    for batch in synthetic_batches(IMAGE, 2):
        image = batch["x"][0]
        assert np.corrcoef(image[:, :, 1:].ravel(), image[:, :, :-1].ravel())[0, 1] > 0.6
        assert np.corrcoef(image[0].ravel(), image[1].ravel())[0, 1] > 0.4


def test_every_other_image_has_flat_regions_and_edges():
    def kurtosis_of_steps(image):
        steps = np.diff(image, axis=-1)
        return np.mean(steps**4) / np.mean(steps**2) ** 2

    noise, leaves = (kurtosis_of_steps(batch["x"]) for batch in synthetic_batches(IMAGE, 2))
    assert noise < 4  # a normal distribution has 3
    assert leaves > 8


@pytest.mark.parametrize("values", USUAL_VALUES, ids=lambda values: values.name)
def test_images_come_in_the_values_asked_for(values):
    images = np.concatenate([batch["x"] for batch in synthetic_batches(IMAGE, 8, values)])
    assert abs(images.mean() - values.mean) < 0.1 * values.std
    assert 0.8 * values.std < images.std() < 1.1 * values.std
    low, high = np.float32(values.low), np.float32(values.high)
    assert low <= images.min() <= images.max() <= high
    assert np.ptp(images) > 0.9 * (high - low)


def test_pixels_keep_their_bounds():
    values = InputValues.of_pixels("0..255", 255.0)
    assert (values.low, values.high) == (0.0, 255.0)
    np.testing.assert_array_equal(values.apply(np.array([-9.0, 0.0, 9.0])), [0.0, 0.45 * 255, 255.0])


# The choice of values


def edges_and_colours(batch):
    """A first layer: two colours and two edge filters, [N, 4, H, W - 1]."""
    x = batch["x"]
    red, green = x[:, 0], x[:, 1]
    return {"bn": np.stack([red, red - green, *(np.diff(c, axis=2, append=c[..., -1:]) for c in (red, green))], 1)}


def trained_on(values, seed=9):
    """What a batch norm behind `edges_and_colours` knows after training on images in these values."""
    batches = synthetic_batches(IMAGE, 8, values, seed)
    outputs = np.concatenate([edges_and_colours(batch)["bn"] for batch in batches])
    return {"bn": BatchNormOutput(outputs.mean((0, 2, 3)), outputs.std((0, 2, 3)))}


@pytest.mark.parametrize("values", USUAL_VALUES, ids=lambda values: values.name)
def test_batch_norms_tell_the_values(values):
    assert fit_input_values(edges_and_colours, IMAGE, trained_on(values)) is values


def test_dead_channels_do_not_decide():
    known = trained_on(BY_NAME["0..255"])["bn"]

    def run(batch):
        outputs = edges_and_colours(batch)["bn"]
        return {"bn": np.concatenate([outputs, np.full_like(outputs, 3.0)], 1)}

    dead = BatchNormOutput(np.concatenate([known.mean, np.full(4, 3.0)]), np.concatenate([known.std, np.zeros(4)]))
    assert fit_input_values(run, IMAGE, {"bn": dead}).name == "0..255"


def test_nothing_to_tell_the_values():
    known = trained_on(STANDARDISED)
    assert fit_input_values(edges_and_colours, IMAGE, {}) is None
    for shape, dtype in (((1, 3, 64, 64), "uint8"), ((1, 8), "float32")):
        assert fit_input_values(edges_and_colours, [InputSpec("x", shape, dtype)], known) is None


# The warning


@pytest.mark.parametrize(
    ("values", "assumption"),
    [
        (BY_NAME["0..255"], "taken to be 0..255, which fits the batch norms best"),
        (replace(STANDARDISED, name="N"), "taken to be N, which"),
        (None, "no batch norm .* zero mean and unit variance are assumed"),
    ],
)
def test_the_warning_says_what_was_assumed_and_what_to_do_and_points_at_the_caller(values, assumption):
    def compile_without_data():
        warn_data_free(values)

    with pytest.warns(CalibrationWarning, match=rf"{assumption}.*Pass calibration=.*tvm_int8\.calibrate") as caught:
        compile_without_data()
    assert caught[0].filename == __file__
