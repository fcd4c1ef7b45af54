import json
import tracemalloc

import numpy as np
import pytest

from tvm_int8 import winograd
from tvm_int8.quantization import transformed_statistics
from tvm_int8.quantization.transformed_statistics import TILES, TransformedObserver, TransformedStatistics

PADDING = (1, 1, 1, 1)
OF_DATA = ("mean", "mean_square", "nonzero")
OF_TILES = ("low", "high", "power")


def draw(*shape, seed=0):
    return np.maximum(np.random.default_rng(seed).standard_normal(shape), -0.5).astype(np.float32)


def seen_of(*batches, paddings=(PADDING,)):
    observer = TransformedObserver(paddings)
    for batch in batches:
        observer.update(batch)
    return observer.statistics()


def transformed(values, padding=PADDING, tile=(4, 4)):
    """[C, positions, tiles], by definition."""
    rows, columns = (winograd.matrices(outputs).data for outputs in tile)
    tiles = winograd.tiles_of(values.astype(np.float64), tile, padding, 0)
    found = np.einsum("iy,nctuyx,jx->cijntu", rows, tiles, columns)
    return found.reshape(values.shape[1], winograd.positions(tile), -1)


def assert_same(found, expected, rtol):
    for name in OF_DATA:
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=rtol)
    assert list(found.tiles) == list(expected.tiles) == list(TILES)
    for tile in TILES:
        for name in OF_TILES:
            np.testing.assert_allclose(getattr(found.tiles[tile], name), getattr(expected.tiles[tile], name), rtol=rtol)


@pytest.mark.parametrize(("shape", "padding"), [((2, 5, 8, 12), PADDING), ((1, 3, 7, 9), (0, 0, 0, 0))])
def test_what_is_seen_is_what_convolutions_transform(shape, padding):
    first, second = draw(*shape), 3 * draw(*shape, seed=1)
    second[:, 0] = np.maximum(second[:, 0], 0)
    seen, whole = seen_of(first, second, paddings=[padding]), np.concatenate([first, second])
    for tile in TILES:
        values, found = transformed(whole, padding, tile), seen.tiles[tile]
        np.testing.assert_allclose(found.low, np.minimum(values.min(2), 0).T, rtol=6e-3)
        np.testing.assert_allclose(found.high, np.maximum(values.max(2), 0).T, rtol=6e-3)
        np.testing.assert_allclose(found.power, np.square(values).mean(2).T, rtol=6e-3)
    np.testing.assert_allclose(seen.mean, whole.mean((0, 2, 3)), rtol=6e-3)
    np.testing.assert_allclose(seen.mean_square, np.square(whole).mean((0, 2, 3)), rtol=6e-3)
    np.testing.assert_allclose(seen.nonzero, (whole != 0).mean((0, 2, 3)), rtol=6e-3)
    assert seen.nonzero[0] < 0.8 < seen.nonzero[1]


@pytest.mark.parametrize("kept", [1024, 200])
def test_loudness_is_that_of_an_average_tile(monkeypatch, kept):
    """Half of the maps at a tenth: about half the mean square, whichever tiles are kept."""
    monkeypatch.setattr(transformed_statistics, "KEPT", kept)
    loud = draw(4, 5, 24, 24)
    every = seen_of(loud, loud / 10)
    for tile in TILES:
        reach = np.abs(np.concatenate([transformed(loud, tile=tile), transformed(loud / 10, tile=tile)], 2)).max(0)
        expected = np.square((reach / reach.max(1, keepdims=True)).max(0)).mean()
        assert every.tiles[tile].loudness == pytest.approx(
            expected, rel=0.01 if kept > 1000 and tile == (4, 4) else 0.25
        )
        assert every.tiles[tile].loudness < 0.75 * seen_of(loud).tiles[tile].loudness < 0.75


def test_zero_is_always_among_what_is_reached():
    """A map that is never zero: a sum of all pixels of a tile still begins at zero."""
    seen = seen_of(5 + np.zeros((1, 2, 8, 8), np.float32), paddings=[(0, 0, 0, 0)])
    for tile in seen.tiles.values():
        assert (tile.low <= 0).all() and (tile.high >= 0).all() and (tile.high > 0).any()


def test_every_padding_counts_once():
    values, other = draw(1, 4, 8, 8), (0, 0, 0, 0)
    both = seen_of(values, paddings=[PADDING, other, PADDING]).tiles[4, 4]
    alone = [transformed(values, padding) for padding in (PADDING, other)]
    np.testing.assert_allclose(both.high, np.maximum(*(t.max(2).T for t in alone)).clip(0), rtol=6e-3)
    np.testing.assert_allclose(both.low, np.minimum(*(t.min(2).T for t in alone)).clip(max=0), rtol=6e-3)
    count = [t.shape[2] for t in alone]
    power = sum(n * np.square(t).mean(2).T for n, t in zip(count, alone, strict=True)) / sum(count)
    np.testing.assert_allclose(both.power, power, rtol=6e-3)


def test_many_tiles_are_sampled(monkeypatch):
    values = draw(1, 4, 64, 64)
    whole = seen_of(values)
    monkeypatch.setattr(transformed_statistics, "SAMPLED", 400)
    some, again = seen_of(values), seen_of(values)
    assert_same(some, again, rtol=0)
    assert (some.mean == whole.mean).all()
    for tile, every in whole.tiles.items():
        few = some.tiles[tile]
        assert (few.high <= every.high).all() and (few.high < every.high).any()
        assert (few.low >= every.low).all()
        np.testing.assert_allclose(few.power, every.power, rtol=0.8)


def test_a_few_tiles_of_many_channels_are_always_looked_at(monkeypatch):
    monkeypatch.setattr(transformed_statistics, "SAMPLED", 1)
    values = draw(1, 4, 16, 16)
    np.testing.assert_allclose(seen_of(values).tiles[4, 4].power, np.square(transformed(values)).mean(2).T, rtol=6e-3)


def test_large_maps_take_little_memory():
    """As transformed tiles of all shapes, this map would take nearly a gigabyte."""
    values = np.ones((1, 64, 512, 512), np.float32)
    tracemalloc.start()
    try:
        seen_of(values)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1.5 * values.nbytes


def test_divided_channels():
    values, divisor = draw(2, 3, 8, 8), np.array([0.5, 2.0, 10.0])
    direct = seen_of((values / divisor.reshape(1, 3, 1, 1)).astype(np.float32))
    assert_same(seen_of(values).divided(divisor), direct, rtol=0.011)


def test_a_file_gives_the_same():
    seen = seen_of(1e-3 * draw(1, 20, 9, 9))
    text = json.dumps(seen.to_dict())
    assert_same(TransformedStatistics.from_dict(json.loads(text)), seen, rtol=0)
    numbers = len(OF_DATA) + len(OF_TILES) * sum(winograd.positions(tile) for tile in TILES)
    assert len(text) < 12 * 20 * numbers


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda d: d.pop("mean"), KeyError),
        (lambda d: d.pop("4x2"), KeyError),
        (lambda d: d["4x4"].pop("power"), KeyError),
        (lambda d: d["2x2"].update(d["4x4"]), ValueError),
        (lambda d: d["4x4"]["high"].pop(), ValueError),
        (lambda d: d["4x2"]["low"][0].pop(), ValueError),
        (lambda d: d["2x2"]["high"][0].__setitem__(0, -0.1), ValueError),
        (lambda d: d["nonzero"].__setitem__(0, -0.1), ValueError),
        (lambda d: d["mean"].__setitem__(0, float("nan")), ValueError),
        (lambda d: d["4x4"]["power"].__setitem__(0, "much"), ValueError),
        (lambda d: d.update({"4x4": 3}), TypeError),
    ],
)
def test_other_content_is_refused(change, error):
    document = seen_of(draw(1, 2, 8, 8)).to_dict()
    change(document)
    with pytest.raises(error):
        TransformedStatistics.from_dict(document)
