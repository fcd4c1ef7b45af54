import sys
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from tvm_int8.config import QuantizationConfig
from tvm_int8.errors import CalibrationError
from tvm_int8.quantization.calibrate import collect
from tvm_int8.quantization.calibration_table import CalibrationTable
from tvm_int8.quantization.calibrators import calibrator_names
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


@pytest.mark.parametrize("method", ["minmax", "auto"])
def test_memory_does_not_grow_with_the_batches(method):
    config = QuantizationConfig(method=method)
    collect(_run, _batches(5), POINTS, config)  # what is imported and cached on first use
    peaks = []
    for count in (100, 1000):
        tracemalloc.start()
        try:
            collect(_run, _batches(count), POINTS, config)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < peaks[0] + 100_000  # 4 MB went through


def test_ten_thousand_batches():
    everything = np.random.default_rng(0).standard_normal((10_000, 20)).astype(np.float32)
    table = collect(lambda batch: batch, ({"x": row} for row in everything), ["x"], QuantizationConfig(method="auto"))
    whole = collect(lambda batch: batch, [{"x": everything}], ["x"], QuantizationConfig(method="auto"))
    assert table["x"].batches == 10_000
    assert (table["x"].low, table["x"].high) == (whole["x"].low, whole["x"].high)


def test_one_method_per_point_and_one_sweep():
    methods = {"/head/*": "minmax", "double": "percentile", "*": "auto"}
    config = QuantizationConfig(method="mse", methods=methods)
    layers = {"double": "/scale", "relu": "/head/relu"}
    table = collect(_run, _batches(20), POINTS, config, layers=layers)
    assert [r.method.split(": ")[0] for r in table.values()] == ["auto", "percentile", "minmax"]
    for name, method in (("double", "percentile"), ("relu", "minmax")):
        alone = collect(_run, _batches(20), [name], QuantizationConfig(method=method))
        assert table[name] == alone[name]
    assert collect(_run, _batches(2), ["relu"], config)["relu"].method.startswith("auto: ")


@pytest.mark.parametrize("method", calibrator_names())
def test_saturation_is_the_share_of_values_beyond_the_range(method, tmp_path):
    everything = np.concatenate([batch["x"] for batch in _batches(100)])
    table = collect(_run, _batches(100), POINTS, QuantizationConfig(method=method))
    low, high = table["x"].low, table["x"].high
    exact = np.mean((everything < low) | (everything > high))
    assert table["x"].saturation == pytest.approx(exact, abs=3e-5)
    assert (table["x"].saturation == 0) == (table["x"].clipping == 0) == (exact == 0)
    assert exact == 0 or method != "minmax"
    table.save(tmp_path / "t.json")
    assert CalibrationTable.load(tmp_path / "t.json") == table


def test_values_between_zero_and_the_range_are_not_beyond_it():
    data = [{"x": np.append(np.random.default_rng(0).uniform(9, 10, 100_000), 0.5)}]
    table = collect(lambda batch: batch, data, ["x"], QuantizationConfig(method="percentile", percentile=99))
    assert 9.0 < table["x"].low < 9.1
    assert table["x"].saturation == pytest.approx(0.005, abs=2e-3)


def test_symmetric_ranges_saturate_less():
    data = [{"x": np.random.default_rng(0).standard_normal(100_000) - 1.0}]
    for symmetric in (False, True):
        config = QuantizationConfig(method="percentile", percentile=98, activation_symmetric=symmetric)
        table = collect(lambda batch: batch, data, ["x"], config)
        assert table["x"].saturation == pytest.approx(0.01 if symmetric else 0.02, abs=1e-3)


def test_histograms_are_kept_for_all_and_change_nothing():
    config = QuantizationConfig(methods={"x": "minmax"})
    without = collect(_run, _batches(10), POINTS, config)
    with_histograms = collect(_run, _batches(10), POINTS, config, keep_histograms=True)
    for name in POINTS:
        assert sum(with_histograms[name].histogram.counts) == 10_000
        assert replace(with_histograms[name], histogram=None) == without[name]


def test_auto_asks_the_score_of_each_point():
    asked = []

    def widest(ends):
        asked.append(ends)
        return ends[0] - ends[1]

    config = QuantizationConfig(method="auto")
    table = collect(_run, _batches(20), POINTS, config, scores={"x": widest})
    assert table["x"].method == "auto: minmax"
    assert len(asked) == len(calibrator_names()) - 1
    assert table["double"] == collect(_run, _batches(20), ["double"], config)["double"]
