import numpy as np
import pytest

from tvm_int8.errors import ModelError
from tvm_int8.quantization.weights import quantize_weight, weight_scale


def _weight(shape, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * 10.0 ** rng.uniform(-6, 4)).astype(np.float32)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    ("shape", "axis"), [((8, 3, 3, 3), 0), ((4, 6, 2, 2), 1), ((10, 7), 1), ((10, 7), -1), ((5,), 0), ((4, 3), None)]
)
def test_every_channel_uses_the_whole_range(shape, axis, seed):
    weight = _weight(shape, seed)
    quantized, scale = quantize_weight(weight, axis)
    assert (quantized.dtype, scale.dtype, quantized.shape) == (np.int8, np.float32, shape)
    assert scale.shape == (() if axis is None else (shape[axis],))
    assert np.abs(quantized.astype(int)).max() <= 127
    if axis is None:
        assert np.abs(quantized).max() == 127
        step = scale
    else:
        assert (np.abs(np.moveaxis(quantized, axis, 0).reshape(shape[axis], -1)).max(axis=1) == 127).all()
        step = scale.reshape([-1 if i == axis % len(shape) else 1 for i in range(len(shape))])
    assert (np.abs(quantized * step - weight) <= 0.5001 * step).all()


def test_rounding_is_half_to_even():
    quantized, scale = quantize_weight(np.array([127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -127.0]), axis=None)
    assert scale == 1.0
    assert quantized.tolist() == [127, 0, 2, 2, 0, -2, -127]


def test_minus_128_is_never_used():
    quantized, _ = quantize_weight(np.array([[-1.0, 0.5]]), axis=0)
    assert quantized.tolist() == [[-127, 64]]


@pytest.mark.parametrize("tiny", [0.0, -0.0, 1e-45, 1e-38])
def test_channels_of_zeros_have_scale_one(tiny):
    quantized, scale = quantize_weight(np.array([[tiny, 0.0], [1.27, -1.27]]), axis=0)
    assert quantized.tolist() == [[0, 0], [127, -127]]
    np.testing.assert_array_equal(scale, np.float32([1.0, 0.01]))
    assert quantize_weight(np.full((2, 2), tiny), axis=None)[1] == 1.0


def test_quantising_twice_changes_nothing():
    quantized, scale = quantize_weight(_weight((16, 8, 3, 3)), axis=0)
    again, scale_again = quantize_weight(quantized * scale[:, None, None, None], axis=0)
    np.testing.assert_array_equal(again, quantized)
    np.testing.assert_allclose(scale_again, scale, rtol=2e-7)


def test_the_weight_is_left_alone():
    weight = _weight((4, 3))
    before = weight.copy()
    quantize_weight(weight)
    np.testing.assert_array_equal(weight, before)


def test_the_largest_float32_does_not_overflow():
    quantized, scale = quantize_weight(np.array([[3.4e38, -3.4e38]]), axis=0)
    assert quantized.tolist() == [[127, -127]]
    assert np.isfinite(scale).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_weights_that_are_not_finite(bad):
    with pytest.raises(ModelError, match=r"'layer3\.conv\.weight': NaN or infinite"):
        quantize_weight(np.array([[bad, 1.0]]), name="layer3.conv.weight")


def test_an_axis_that_is_not_there():
    with pytest.raises(ValueError, match="axis 2 is out of range"):
        quantize_weight(np.ones((2, 2)), axis=2)


def test_preserved_sums():
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((32, 8, 3, 3)).astype(np.float32)
    plain, scale = quantize_weight(weight, 0)
    kept, same_scale = quantize_weight(weight, 0, rounding="sums")
    np.testing.assert_array_equal(scale, same_scale)
    assert np.abs(kept.astype(int) - plain).max() == 1
    spread = scale.reshape(-1, 1, 1, 1)

    def lost(quantized):
        return np.abs((quantized - weight / spread).sum((2, 3)))

    assert lost(kept).max() <= 1.01 < lost(plain).max()  # a half, and one more where the largest weight must not grow
    assert np.abs(kept - weight / spread).max() <= 1.0


def test_few_weights_lie_on_the_best_grid_near_the_largest():
    """Kernels of nine weights: less error than at max|w| / 127, on smooth inputs above all; nothing far off."""
    weight = np.random.default_rng(0).standard_normal((200, 1, 3, 3)).astype(np.float32)
    plain, searched = (quantize_weight(weight, rounding=how) for how in ("nearest", "sums"))
    errors = [q * s.reshape(-1, 1, 1, 1) - weight for q, s in (plain, searched)]
    assert np.square(errors[1].sum((2, 3))).mean() < 0.1 * np.square(errors[0].sum((2, 3))).mean()
    assert np.square(errors[1]).mean() < 1.2 * np.square(errors[0]).mean()
    np.testing.assert_allclose(searched[1], plain[1], rtol=0.051)


@pytest.mark.parametrize("rounding", ["nearest", "sums"])
def test_seven_bits(rounding):
    """Two products with a byte fit into int16."""
    weight = _weight((16, 8, 3, 3))
    quantized, scale = quantize_weight(weight, bits=7, rounding=rounding)
    assert np.abs(quantized.astype(int)).max() == 63
    assert 2 * 255 * int(np.abs(quantized).max()) <= np.iinfo(np.int16).max
    np.testing.assert_allclose(scale * 63, quantize_weight(weight)[1] * 127, rtol=1e-6)
    assert np.abs(quantized * scale.reshape(-1, 1, 1, 1) - weight).max() <= 1.0001 * scale.max()


def _squared_error(weight, quantized, scale, axis):
    spread = () if axis is None else [-1 if i == axis else 1 for i in range(weight.ndim)]
    return (quantized * scale.reshape(spread) - weight.astype(np.float64)) ** 2


@pytest.mark.parametrize(
    ("shape", "axis"), [((6, 40, 5, 5), 0), ((40, 6, 5, 5), 1), ((1, 9000), None), ((3, 70000), 0)]
)
def test_clipping_lowers_the_squared_error_of_every_channel(shape, axis):
    """Also of rows longer than what is searched at a time; one weight of each channel lies far outside."""
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    weight[tuple(slice(None) if i == (axis or 0) else 0 for i in range(weight.ndim))] = 16.0
    kept, clipped = (quantize_weight(weight, axis, clipping=how) for how in ("none", "mse"))
    others = None if axis is None else tuple(i for i in range(len(shape)) if i != axis)
    errors = [_squared_error(weight, *found, axis).sum(others) for found in (kept, clipped)]
    assert (errors[1] <= errors[0]).all()
    assert errors[1].sum() < errors[0].sum()
    assert (clipped[1] <= kept[1]).all()
    assert clipped[1].min() >= 0.299 * kept[1].min()


@pytest.mark.parametrize("bits", [8, 7])
def test_clipping_finds_the_best_scale(bits):
    """One outlier far away: nothing on a grid of scales is better, and seven bits clip more than eight."""
    weight = np.random.default_rng(0).standard_normal((1, 40000)).astype(np.float32)
    weight[0, 0] = 16.0
    largest = quantize_weight(weight, bits=bits)[1]
    limit = 2 ** (bits - 1) - 1
    tried = largest * np.linspace(0.3, 1.0, 71)
    errors = [((np.clip(np.rint(weight / s), -limit, limit) * s - weight) ** 2).sum() for s in tried]
    found = _squared_error(weight, *quantize_weight(weight, bits=bits, clipping="mse"), 0).sum()
    assert found <= 1.01 * min(errors)
    assert found < {8: 0.9, 7: 0.7}[bits] * errors[-1]


def test_clipping_keeps_what_lies_on_the_grid():
    weight = np.random.default_rng(0).integers(-127, 128, (4, 300)).astype(np.float32)
    weight[:, 0] = 127
    np.testing.assert_array_equal(quantize_weight(weight, clipping="mse")[0], weight)


def test_clipping_leaves_channels_of_zeros_alone():
    quantized, scale = quantize_weight(np.array([[0.0, 0.0], [1e-45, 0.0], [1.27, -1.27]]), clipping="mse")
    assert quantized.tolist() == [[0, 0], [0, 0], [127, -127]]
    np.testing.assert_array_equal(scale, np.float32([1.0, 1.0, 0.01]))


def test_weights_that_meet_nothing_may_be_clipped():
    """The error counts as much as the input channel does: the largest weight meets a channel that is always zero."""
    weight = np.random.default_rng(0).standard_normal((5, 4, 3, 3)).astype(np.float32)
    weight[:, 2] *= 3
    importance = np.array([1.0, 2.0, 0.0, 1.0]).reshape(1, 4, 1, 1)
    plain, weighted = (quantize_weight(weight, clipping="mse", importance=i) for i in (None, importance))
    errors = [(_squared_error(weight, *found, 0) * importance).sum((1, 2, 3)) for found in (plain, weighted)]
    assert (errors[1] < 0.5 * errors[0]).all()


@pytest.mark.parametrize("clipping", ["none", "mse"])
def test_the_scale_alone(clipping):
    weight = _weight((16, 8, 3, 3))
    scale = weight_scale(weight, bits=7, clipping=clipping)
    np.testing.assert_array_equal(scale, quantize_weight(weight, bits=7, clipping=clipping)[1])


@pytest.mark.parametrize("options", [{"clipping": "mean"}, {"rounding": "learned"}])
def test_ways_that_are_not_there(options):
    with pytest.raises(ValueError, match="expected one of"):
        quantize_weight(np.ones((2, 2)), **options)
