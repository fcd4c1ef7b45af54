import sys
import tracemalloc

import numpy as np
import pytest

from tvm_int8.config import QuantizationConfig
from tvm_int8.errors import CalibrationError
from tvm_int8.quantization.calibrate import collect
from tvm_int8.quantization.calibration_table import CalibrationTable
from tvm_int8.quantization.data import CalibrationBatches, InputSpec


def _run(batch):
    x = batch["x"]
    return {"x": x, "double": 2 * x, "relu": np.maximum(x, 0), "not a point": np.full(3, np.nan)}


def _batches(count, size=1000):
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield {"x": rng.standard_normal((1, size)).astype(np.float32)}


POINTS = ["x", "double", "relu"]


def test_minmax_over_all_batches():
    everything = np.concatenate([batch["x"] for batch in _batches(20)])
    table = collect(_run, _batches(20), POINTS, QuantizationConfig(method="minmax"))
    assert list(table) == POINTS
    assert (table["x"].low, table["x"].high) == (everything.min(), everything.max())
    assert (table["double"].low, table["relu"].low) == (2 * everything.min(), 0.0)
    assert all((r.method, r.batches, r.histogram) == ("minmax", 20, None) for r in table.values())


def test_percentile_over_all_batches(tmp_path):
    everything = np.concatenate([batch["x"] for batch in _batches(50)])
    config = QuantizationConfig(method="percentile", percentile=99)
    table = collect(_run, _batches(50), POINTS, config, keep_histograms=True)
    expected = np.percentile(everything, [0.5, 99.5])
    np.testing.assert_allclose([table["x"].low, table["x"].high], expected, atol=0.01)
    assert table["x"].method == "percentile"
    assert sum(table["x"].histogram.counts) == everything.size
    assert collect(_run, _batches(50), POINTS, config)["x"].histogram is None
    table.save(tmp_path / "t.json")
    assert CalibrationTable.load(tmp_path / "t.json") == table


def test_with_the_users_data():
    data = np.random.default_rng(0).standard_normal((64, 10))
    batches = CalibrationBatches(data, [InputSpec("x", (4, 10))])
    table = collect(_run, batches, ["x"], QuantizationConfig(method="minmax"))
    assert table["x"].batches == 16
    assert table["x"].high == np.float32(data.max())


def test_no_batch():
    with pytest.raises(CalibrationError, match="no batch at all"):
        collect(_run, iter(()), POINTS)


def test_a_missing_point():
    with pytest.raises(CalibrationError, match="batch 0, tensor 'conv7': not among the 4 tensors"):
        collect(_run, _batches(1), ["conv7"])


def test_nan_names_tensor_and_batch():
    def run(batch):
        run.calls = getattr(run, "calls", 0) + 1
        return {"a": np.ones(3), "b": np.full(3, np.nan if run.calls == 6 else 1.0)}

    with pytest.raises(CalibrationError, match="calibration batch 5, tensor 'b': 3 NaN"):
        collect(run, _batches(10), ["a", "b"])


def test_the_progress_bar_shows_on_a_terminal_only(monkeypatch, capsys):
    collect(_run, _batches(2), POINTS)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    collect(_run, list(_batches(2)), POINTS)
    assert "2/2" in capsys.readouterr().err
    collect(_run, _batches(2), POINTS, progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("method", ["minmax", "percentile"])
def test_a_thousand_batches_in_bounded_memory(method):
    config = QuantizationConfig(method=method)
    collect(_run, _batches(5), POINTS, config)  # what is imported and cached on first use
    tracemalloc.start()
    try:
        collect(_run, _batches(1000), POINTS, config)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 500_000  # 4 MB went through
