"""Scales per channel: who gets them, what they cover, and that they lower the noise they are predicted to lower."""

import numpy as np
import pytest

from tvm_int8.quantization.arithmetic import dequantize, quantize
from tvm_int8.quantization.calibration_table import TensorRange
from tvm_int8.quantization.channel_scales import LEAST_RANGE, Reader, channel_scales
from tvm_int8.quantization.observers import ChannelObserver
from tvm_int8.quantization.weights import quantize_weight

CHANNELS = 24


def observed(values: np.ndarray) -> TensorRange:
    observer = ChannelObserver()
    observer.update(values)
    return TensorRange(float(values.min()), float(values.max()), "minmax", 1, channels=observer.statistics())


@pytest.fixture
def values(rng):
    """[N, C, 6, 6], channels of amplitudes from 0.05 to 20 on either side of zero."""
    spread = np.geomspace(0.05, 20, CHANNELS) * np.where(np.arange(CHANNELS) % 2, 1, -1)
    noise = rng.random((16, CHANNELS, 6, 6)) - 0.1
    return (noise * spread.reshape(1, -1, 1, 1)).astype(np.float32)


def apart() -> Reader:
    return Reader(np.ones((CHANNELS, 1, 9), np.float32), mixes=False)


def mixing(rng, pads: bool) -> Reader:
    """A convolution whose weights are large where the data is small."""
    weight = rng.standard_normal((CHANNELS, 16, 1)) / np.geomspace(0.05, 20, CHANNELS).reshape(-1, 1, 1)
    return Reader(weight.astype(np.float32), mixes=True, pads=pads)


def test_readers_that_keep_channels_apart_get_every_channels_own_range(values):
    found = channel_scales(observed(values), [apart()])
    assert found.factor is None
    low, high = values.min((0, 2, 3)), values.max((0, 2, 3))
    ends = np.stack([-found.zero_point, 255 - found.zero_point]) * found.scale
    step = found.scale
    assert (ends[0] <= np.minimum(low, 0) + step).all() and (ends[1] >= np.maximum(high, 0) - step).all()
    assert found.scale.min() >= LEAST_RANGE * (values.max() - values.min()) / 255 * 0.99
    restored = dequantize(quantize(values, *spread(found)), *spread(found))
    assert (np.abs(restored - values) <= 0.51 * found.scale.reshape(1, -1, 1, 1)).all()


def spread(found):
    return found.scale.reshape(1, -1, 1, 1), found.zero_point.reshape(1, -1, 1, 1)


@pytest.mark.parametrize("pads", [False, True])
def test_a_convolution_reads_channels_in_one_step(values, rng, pads):
    found = channel_scales(observed(values), [mixing(rng, pads)])
    np.testing.assert_allclose(found.scale, found.step * found.factor, rtol=1e-6)
    assert (len(set(found.zero_point.tolist())) == 1) == pads, "only what pads needs one zero"
    restored = dequantize(quantize(values, *spread(found)), *spread(found))
    assert (np.abs(restored - values) <= 0.51 * found.scale.reshape(1, -1, 1, 1)).all(), "something is clipped"


@pytest.mark.parametrize("pads", [False, True])
def test_noise_of_a_convolution_falls(values, rng, pads):
    """conv(x, w), x and w quantised, with one scale and with scales per channel."""
    reader, seen = mixing(rng, pads), observed(values)
    weight = reader.weight[:, :, 0].T
    exact = np.einsum("oc,nchw->nohw", weight, values)

    def noise(data, factor):
        quantized, scale = quantize_weight(weight * factor)
        real = quantized * scale[:, None] / factor
        return np.square(np.einsum("oc,nchw->nohw", real, data) - exact).mean()

    found = channel_scales(seen, [reader])
    one = (np.float32((seen.high - seen.low) / 255), int(np.rint(-seen.low / (seen.high - seen.low) * 255)))
    before = noise(dequantize(quantize(values, *one), *one), np.ones(CHANNELS))
    after = noise(dequantize(quantize(values, *spread(found)), *spread(found)), found.factor)
    assert after < 0.5 * before


def test_even_channels_keep_one_scale(rng):
    values = rng.random((8, CHANNELS, 6, 6)).astype(np.float32)
    values[0, :, 0, 0], values[0, :, 0, 1] = 0.0, 1.0
    weight = rng.choice([-1.0, 1.0], (CHANNELS, 16, 1)).astype(np.float32)
    seen = observed(np.concatenate([values] * 100))
    assert channel_scales(seen, [Reader(weight, mixes=True, pads=True)]) is None


def test_unknown_channels_keep_one_scale():
    assert channel_scales(TensorRange(0.0, 1.0, "minmax", 1), [apart()]) is None


def test_what_the_calibrated_range_cuts_off_counts(values, rng):
    """Clipping a tensor's loud channel makes scales per channel, which clip nothing, the better choice."""
    quiet = rng.random((200, CHANNELS, 6, 6)).astype(np.float32)
    loud = quiet.copy()
    loud[0, 3, 0, 0] = 40.0
    seen = observed(loud)
    reader = Reader(rng.standard_normal((CHANNELS, 16, 1)).astype(np.float32), mixes=True)
    clipped = TensorRange(0.0, 1.0, "mse", 1, channels=seen.channels, clipping=39.0**2 / loud.size * 50)
    ignored = TensorRange(0.0, 1.0, "mse", 1, channels=seen.channels)
    assert channel_scales(clipped, [reader]) is not None
    assert channel_scales(ignored, [reader]) is None


@pytest.mark.parametrize("pads", [None, False, True])
def test_symmetric_channels_have_zero_in_the_middle_or_at_the_end(values, rng, pads):
    """Channels of both signs, and ReLU's: the same bound on the error, at zero points 128 and 0 only."""
    values[:, ::2] = np.abs(values[:, ::2])
    readers = [apart()] if pads is None else [mixing(rng, pads)]
    found = channel_scales(observed(values), readers, symmetric=True)
    mixed_signs = values.min((0, 2, 3)) < 0
    assert mixed_signs.any() and not mixed_signs.all()
    if pads:
        assert set(found.zero_point.tolist()) == {128}
    else:
        assert found.zero_point.tolist() == np.where(mixed_signs, 128, 0).tolist()
    restored = dequantize(quantize(values, *spread(found)), *spread(found))
    assert (np.abs(restored - values) <= 0.51 * found.scale.reshape(1, -1, 1, 1)).all()
    if pads is None:
        assert found.scale.min() >= LEAST_RANGE * (values.max() - values.min()) / 255 * 0.99
    else:
        np.testing.assert_allclose(found.scale, found.step * found.factor, rtol=1e-6)


def test_symmetric_scales_of_positive_channels_are_those_of_any(values, rng):
    seen, readers = observed(np.abs(values)), [mixing(rng, pads=False)]
    plain, symmetric = channel_scales(seen, readers), channel_scales(seen, readers, symmetric=True)
    np.testing.assert_array_equal(plain.scale, symmetric.scale)
    assert set(symmetric.zero_point.tolist()) == {0}
