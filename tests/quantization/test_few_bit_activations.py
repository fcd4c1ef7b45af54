"""Activations of few bits: narrower ranges, the same ratios."""

import numpy as np
import pytest

from tvm_int8.quantization.calibration_table import TensorRange
from tvm_int8.quantization.few_bit_activations import narrowed, range_share
from tvm_int8.quantization.observers import Histogram


def seen(values) -> TensorRange:
    width = 2.0**-8
    first = int(np.floor(values.min() / width))
    counts = np.bincount(np.floor(values / width).astype(int) - first)
    return TensorRange(float(values.min()), float(values.max()), "minmax", 1, Histogram(first, width, tuple(counts)))


def error(values, bits, share):
    scale = values.max() * share / (2**bits - 1)
    return np.mean((np.clip(np.rint(values / scale), 0, 2**bits - 1) * scale - values) ** 2)


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_the_share_is_about_the_best(bits, rng):
    values = np.abs(rng.laplace(size=100_000))
    share = range_share(seen(values), bits)
    best = min(error(values, bits, s) for s in np.linspace(0.05, 1, 96))
    assert error(values, bits, share) < 1.25 * best
    assert error(values, bits, share) < error(values, bits, 1.0)


def test_fewer_bits_want_narrower_ranges(rng):
    range_seen = seen(np.abs(rng.standard_normal(100_000)))
    for known in (range_seen, None):
        shares = [range_share(known, bits) for bits in range(1, 9)]
        assert shares == sorted(shares)
        assert shares[-1] == 1.0
        assert shares[0] > 0


def test_eight_bits_stay():
    scale, zero_point = np.array([0.5, 0.25], np.float32), np.array([7, 200])
    found = narrowed(scale, zero_point, 8)
    np.testing.assert_array_equal(found[0], scale)
    np.testing.assert_array_equal(found[1], zero_point)
    assert found[2] == 1.0


@pytest.mark.parametrize("bits", range(1, 8))
def test_the_range_is_covered_by_fewer_levels(bits):
    levels = 2**bits - 1
    scale, zero_point, ratio = narrowed(np.float32(0.1), np.int64(0), bits, 0.5)
    assert scale * levels == pytest.approx(0.1 * 255 * 0.5, rel=1e-5)
    assert ratio == pytest.approx(scale / 0.1, rel=1e-5)
    assert zero_point == 0
    assert narrowed(np.float32(0.1), np.int64(255), bits)[1] == levels
