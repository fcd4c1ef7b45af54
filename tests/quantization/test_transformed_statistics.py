import json

import numpy as np
import pytest

from tvm_int8 import winograd
from tvm_int8.quantization import transformed_statistics
from tvm_int8.quantization.transformed_statistics import TILE, TransformedObserver, TransformedStatistics

PADDING = (1, 1, 1, 1)


def draw(*shape, seed=0):
    return np.maximum(np.random.default_rng(seed).standard_normal(shape), -0.5).astype(np.float32)


def seen_of(*batches, paddings=(PADDING,), tile=TILE):
    observer = TransformedObserver(paddings, tile)
    for batch in batches:
        observer.update(batch)
    return observer.statistics()


def transformed(values, padding=PADDING, tile=TILE):
    """[C, positions, tiles], by definition."""
    rows, columns = (winograd.matrices(outputs).data for outputs in tile)
    tiles = winograd.tiles_of(values.astype(np.float64), tile, padding, 0)
    found = np.einsum("iy,nctuyx,jx->cijntu", rows, tiles, columns)
    return found.reshape(values.shape[1], winograd.positions(tile), -1)


@pytest.mark.parametrize("tile", [(4, 4), (4, 2), (2, 2)])
@pytest.mark.parametrize(("shape", "padding"), [((2, 5, 8, 12), PADDING), ((1, 3, 7, 9), (0, 0, 0, 0))])
def test_what_is_seen_is_what_convolutions_transform(shape, padding, tile):
    first, second = draw(*shape), 3 * draw(*shape, seed=1)
    second[:, 0] = np.maximum(second[:, 0], 0)
    seen, whole = seen_of(first, second, paddings=[padding], tile=tile), np.concatenate([first, second])
    values = transformed(whole, padding, tile)
    np.testing.assert_allclose(seen.largest, np.abs(values).max(2).T, rtol=6e-3)
    np.testing.assert_allclose(seen.power, np.square(values).mean(2).T, rtol=6e-3)
    np.testing.assert_allclose(seen.mean, whole.mean((0, 2, 3)), rtol=6e-3)
    np.testing.assert_allclose(seen.mean_square, np.square(whole).mean((0, 2, 3)), rtol=6e-3)
    np.testing.assert_allclose(seen.nonzero, (whole != 0).mean((0, 2, 3)), rtol=6e-3)
    assert seen.nonzero[0] < 0.8 < seen.nonzero[1]


def test_every_padding_counts_once():
    values, other = draw(1, 4, 8, 8), (0, 0, 0, 0)
    both = seen_of(values, paddings=[PADDING, other, PADDING])
    alone = [np.abs(transformed(values, padding)).max(2).T for padding in (PADDING, other)]
    np.testing.assert_allclose(both.largest, np.maximum(*alone), rtol=6e-3)


def test_many_tiles_are_sampled(monkeypatch):
    values = draw(1, 4, 64, 64)
    whole = seen_of(values)
    monkeypatch.setattr(transformed_statistics, "SAMPLED", 400)
    some, again = seen_of(values), seen_of(values)
    assert (some.largest == again.largest).all()
    assert (some.largest <= whole.largest).all() and (some.largest < whole.largest).any()
    np.testing.assert_allclose(some.power, whole.power, rtol=0.8)
    assert (some.mean == whole.mean).all()


def test_a_few_tiles_of_many_channels_are_always_looked_at(monkeypatch):
    monkeypatch.setattr(transformed_statistics, "SAMPLED", 1)
    values = draw(1, 4, 16, 16)
    np.testing.assert_allclose(seen_of(values).power, np.square(transformed(values)).mean(2).T, rtol=6e-3)


def test_divided_channels():
    values, divisor = draw(2, 3, 8, 8), np.array([0.5, 2.0, 10.0])
    divided, direct = (
        seen_of(values).divided(divisor),
        seen_of((values / divisor.reshape(1, 3, 1, 1)).astype(np.float32)),
    )
    for name in ("mean", "mean_square", "nonzero", "largest", "power"):
        np.testing.assert_allclose(getattr(divided, name), getattr(direct, name), rtol=0.011)


def test_a_file_gives_the_same():
    seen = seen_of(1e-3 * draw(1, 20, 9, 9))
    text = json.dumps(seen.to_dict())
    loaded = TransformedStatistics.from_dict(json.loads(text))
    for name in ("mean", "mean_square", "nonzero", "largest", "power"):
        assert (getattr(loaded, name) == getattr(seen, name)).all()
    assert len(text) < 12 * 20 * (2 * 36 + 3)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda d: d.pop("power"), KeyError),
        (lambda d: d["largest"].pop(), ValueError),
        (lambda d: d["largest"][0].pop(), ValueError),
        (lambda d: d["nonzero"].__setitem__(0, -0.1), ValueError),
        (lambda d: d["mean"].__setitem__(0, float("nan")), ValueError),
        (lambda d: d["power"].__setitem__(0, "much"), ValueError),
    ],
)
def test_other_content_is_refused(change, error):
    document = seen_of(draw(1, 2, 8, 8)).to_dict()
    change(document)
    with pytest.raises(error):
        TransformedStatistics.from_dict(document)
