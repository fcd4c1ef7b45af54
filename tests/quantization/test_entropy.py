import time

import numpy as np
import pytest

from tvm_int8.quantization.entropy import (
    CANDIDATES,
    LEVELS,
    SMOOTHING,
    SYMMETRIC_LEVELS,
    Divergence,
    best_bins,
    entropy_range,
)
from tvm_int8.quantization.observers import HistogramObserver


def _observed(values):
    observer = HistogramObserver("t")
    observer.update(np.asarray(values), 0)
    return observer.histogram()


def _statement(counts, first, last, levels):
    """KL(P || Q) of one candidate, bin by bin, as the head of entropy.py words it."""
    inside, bins = counts[first:last], last - first
    p = inside.copy()
    p[0] += counts[:first].sum()
    p[-1] += counts[last:].sum()
    p /= p.sum()
    q = np.zeros(bins)
    level = np.arange(bins) * levels // bins
    for i in range(levels):
        members = level == i
        filled = members & (inside > 0)
        if filled.any():
            q[filled] = inside[members].sum() / filled.sum()
    q = (1 - SMOOTHING) * q / inside.sum() + SMOOTHING / bins
    return sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def _counts(kind, bins, seed=0):
    rng = np.random.default_rng(seed)
    x = np.linspace(-1, 1, bins)
    density = {
        "bell": np.exp(-8 * x * x),
        "spiky": rng.exponential(size=bins) ** 4,
        "sparse": np.where(rng.random(bins) < 0.2, 1.0, 0.0),
        "tail": 1 / (0.001 + x * x),
    }[kind]
    return np.floor(1000 * density / density.max())


@pytest.mark.parametrize("kind", ["bell", "spiky", "sparse", "tail"])
@pytest.mark.parametrize("levels", [7, 128, 255])
def test_divergence_is_what_the_statement_says(kind, levels):
    counts = _counts(kind, 500)
    rng = np.random.default_rng(1)
    for first in (0, 3, 100):
        lasts = np.unique(rng.integers(first + levels, 500, 6)) if first + levels < 500 else np.array([500])
        found = Divergence(counts, levels).of(first, lasts)
        expected = [_statement(counts, first, last, levels) for last in lasts]
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["bell", "spiky", "tail"])
def test_one_sided_search_finds_the_least_of_all_candidates(kind):
    counts = _counts(kind, 800)[400:]
    widths = [width for width in (round(400 * i / CANDIDATES) for i in range(1, CANDIDATES + 1)) if width >= 64]
    above = {(0, width): _statement(counts, 0, width, 64) for width in widths}
    assert above[best_bins(counts, 0, 64)] == pytest.approx(min(above.values()))
    mirrored = counts[::-1]
    below = {(400 - width, 400): _statement(mirrored, 400 - width, 400, 64) for width in widths}
    assert below[best_bins(mirrored, 400, 64)] == pytest.approx(min(below.values()))


@pytest.mark.parametrize("kind", ["bell", "tail"])
def test_two_sided_search_comes_close_to_the_least_of_all_pairs(kind):
    counts = _counts(kind, 300)
    first, last = best_bins(counts, 120, 32)
    pairs = [(a, b) for a in range(0, 120, 8) for b in range(300, 120, -8) if b - a >= 32]
    least = min(_statement(counts, a, b, 32) for a, b in pairs)
    assert _statement(counts, first, last, 32) <= 1.1 * least


def test_an_outlier_is_cut_off_and_a_uniform_density_is_not():
    rng = np.random.default_rng(0)
    normal = np.append(rng.standard_normal(200_000), 50.0)
    low, high = entropy_range(_observed(normal))
    assert -4.8 < low < -3 and 3 < high < 6
    low, high = entropy_range(_observed(rng.uniform(-1, 3, 200_000)))
    assert (low, high) == pytest.approx((-1, 3), abs=0.01)


def test_zeros_of_a_relu_do_not_matter():
    rng = np.random.default_rng(0)
    positive = np.abs(rng.standard_normal(200_000)).astype(np.float32)
    ranges = [entropy_range(_observed(np.append(positive, np.zeros(n)))) for n in (1, 200_000, 2_000_000)]
    assert ranges[1] == ranges[2] == pytest.approx(ranges[0], rel=0.05)
    assert ranges[0][0] == 0.0


def test_constants_of_dead_channels_do_not_matter():
    rng = np.random.default_rng(0)
    alive = np.abs(rng.standard_normal(200_000)).astype(np.float32)
    dead = np.repeat(np.linspace(0.01, 0.5, 20), 10_000).astype(np.float32)
    with_dead = entropy_range(_observed(np.concatenate([alive, dead])))
    assert with_dead == pytest.approx(entropy_range(_observed(alive)), rel=0.05)


def test_symmetric_ranges():
    rng = np.random.default_rng(0)
    skewed = np.concatenate([rng.exponential(size=100_000), -0.2 * rng.exponential(size=100_000)])
    low, high = entropy_range(_observed(skewed), symmetric=True)
    assert low == -high
    folded = _observed(np.abs(skewed))
    counts = np.asarray(folded.counts, np.float64)
    assert high == best_bins(counts, 0, SYMMETRIC_LEVELS)[1] * folded.width
    positive = _observed(np.abs(skewed))
    assert entropy_range(positive, symmetric=True) == entropy_range(positive)


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        (np.zeros(5), 0.0, 0.0),
        (np.full(5, 3.7), 0.0, 3.7),
        (np.full(5, -3.7), -3.7, 0.0),
        (np.random.default_rng(0).uniform(1000, 1001, 10_000), 0.0, 1001.0),
        (np.random.default_rng(0).uniform(-1001, -1000, 10_000), -1001.0, 0.0),
        ([0.0, 1e-44], 0.0, 1e-44),
        ([-3e38, 3e38], -3e38, 3e38),
    ],
)
def test_degenerate_tensors_keep_their_range(values, low, high):
    found = entropy_range(_observed(values))
    np.testing.assert_allclose(found, (low, high), rtol=2e-3, atol=2e-38)


def test_few_values_are_kept_apart():
    low, high = entropy_range(_observed(np.random.default_rng(0).choice([-1.0, 0.0, 5.0], 10_000)))
    assert low <= -0.9 and high >= 4.9


def test_seventy_tensors_take_less_than_three_seconds():
    rng = np.random.default_rng(0)
    both, positive = _observed(rng.standard_normal(100_000)), _observed(np.abs(rng.standard_normal(100_000)))
    seconds = []
    for _ in range(3):
        start = time.process_time()
        entropy_range(both)
        entropy_range(positive)
        seconds.append(time.process_time() - start)
    assert 35 * min(seconds) < 3.0
    assert len(both.counts) > LEVELS
