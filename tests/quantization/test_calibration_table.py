import json
import os
from pathlib import Path

import numpy as np
import pytest

from tvm_int8.errors import CalibrationError
from tvm_int8.quantization.calibration_table import CalibrationTable, TensorRange
from tvm_int8.quantization.observers import Histogram
from tvm_int8.quantization.transformed_statistics import TransformedObserver


def _table():
    return CalibrationTable(
        {
            "input": TensorRange(-1.0, 1.0, "minmax", 8),
            'conv "1"/ü:0': TensorRange(0.1, float(np.float32(0.3)), "percentile", 8, Histogram(-2, 0.25, (1, 0, 5))),
            "zeros": TensorRange(0.0, 0.0, "minmax", 8),
            "cut": TensorRange(-0.5, 2.0, "auto: entropy", 8, clipping=0.125, saturation=float(np.float32(1e-4))),
        }
    )


def _saved(tmp_path, change=None):
    path = tmp_path / "table.json"
    _table().save(path)
    if change is not None:
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))
    return path


def test_round_trip(tmp_path):
    loaded = CalibrationTable.load(_saved(tmp_path))
    assert loaded == _table()
    assert list(loaded) == list(_table())
    assert loaded.fingerprint == _table().fingerprint
    for name in loaded:
        assert loaded.scale_zero_point(name) == _table().scale_zero_point(name)


def test_tables_from_before_there_was_saturation_load(tmp_path):
    def change(document):
        for entry in document["tensors"].values():
            del entry["saturation"], entry["clipping"]

    loaded = CalibrationTable.load(_saved(tmp_path, change))
    assert {(r.saturation, r.clipping) for r in loaded.values()} == {(0.0, 0.0)}
    assert loaded["cut"].high == 2.0


def test_round_trip_of_an_empty_table(tmp_path):
    CalibrationTable({}).save(tmp_path / "t.json")
    assert len(CalibrationTable.load(os.fspath(tmp_path / "t.json"))) == 0


def test_random_floats_survive_exactly(tmp_path):
    rng = np.random.default_rng(0)
    pairs = np.sort(rng.standard_normal((200, 2)) * 10.0 ** rng.uniform(-40, 38, (200, 1))).astype(np.float32)
    table = CalibrationTable({f"t{i}": TensorRange(*pair, "minmax", np.int64(1)) for i, pair in enumerate(pairs)})
    table.save(tmp_path / "t.json")
    loaded = CalibrationTable.load(tmp_path / "t.json")
    assert loaded == table
    np.testing.assert_array_equal(np.float32([[r.low, r.high] for r in loaded.values()]), pairs)


def test_a_line_per_tensor(tmp_path):
    lines = _saved(tmp_path).read_text().splitlines()
    assert sum('"low"' in line for line in lines) == 4


def test_mapping_and_repr():
    table = _table()
    assert table["input"].high == 1.0
    assert "missing" not in table
    assert "4 tensors, auto: entropy, minmax, percentile" in repr(table)


def test_scale_zero_point():
    assert _table().scale_zero_point("zeros") == (np.float32(1.0), 0)
    assert _table().scale_zero_point("input", "int8") == (np.float32(2 / 255), 0)
    assert _table().scale_zero_point("cut", symmetric=True) == (np.float32(4 / 255), 128)
    with pytest.raises(CalibrationError, match=r"'conv9'.*no range for it among 4 tensors.*calibrate"):
        _table().scale_zero_point("conv9")


@pytest.mark.parametrize(
    ("low", "high"), [(1.0, -1.0), (0.0, np.inf), (np.nan, 1.0), (0.0, 1e39), ("0", 1.0), (None, 1.0), (False, True)]
)
def test_impossible_ranges_are_refused(low, high):
    with pytest.raises(CalibrationError, match=r"tensor 'x'.*lower first"):
        CalibrationTable({"x": TensorRange(low, high, "minmax", 1)})


def test_saving_replaces_the_file_at_once(tmp_path, monkeypatch):
    path = _saved(tmp_path)
    before = path.read_text()
    seen = []

    def replace(source, target):
        seen.append((path.read_text() == before, json.loads(Path(source).read_text())["version"]))
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(CalibrationError, match="disk full"):
        CalibrationTable({}).save(path)
    assert seen == [(True, 1)]
    assert path.read_text() == before
    assert os.listdir(tmp_path) == ["table.json"]


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    path = _saved(tmp_path)
    monkeypatch.setattr(CalibrationTable, "_to_json", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        _table().save(path)
    assert os.listdir(tmp_path) == ["table.json"]
    assert CalibrationTable.load(path) == _table()


def test_saving_where_it_cannot(tmp_path):
    with pytest.raises(CalibrationError, match="cannot be written"):
        _table().save(tmp_path / "no" / "such" / "directory.json")


def test_file_permissions_are_the_usual_ones(tmp_path):
    (tmp_path / "other").touch()
    assert (_saved(tmp_path).stat().st_mode) == (tmp_path / "other").stat().st_mode


def test_a_missing_file(tmp_path):
    with pytest.raises(CalibrationError, match=r"nowhere\.json: cannot be read"):
        CalibrationTable.load(tmp_path / "nowhere.json")
    with pytest.raises(CalibrationError, match="cannot be read"):
        CalibrationTable.load(tmp_path)


def test_a_file_truncated_anywhere(tmp_path):
    path = _saved(tmp_path)
    content = path.read_bytes()
    for length in range(len(content.rstrip())):
        path.write_bytes(content[:length])
        with pytest.raises(CalibrationError, match="truncated"):
            CalibrationTable.load(path)


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\xff\xfe", b"hello", b"[" * 100_000])
def test_a_file_that_is_not_json(tmp_path, content):
    path = tmp_path / "t.json"
    path.write_bytes(content)
    with pytest.raises(CalibrationError, match="not JSON"):
        CalibrationTable.load(path)


@pytest.mark.parametrize("content", ["[]", "3", "null", '{"format": "something else", "version": 1}', "{}"])
def test_json_of_another_kind(tmp_path, content):
    path = tmp_path / "t.json"
    path.write_text(content)
    with pytest.raises(CalibrationError, match="another kind"):
        CalibrationTable.load(path)


@pytest.mark.parametrize("version", [2, 0, "1", None])
def test_another_version(tmp_path, version):
    path = _saved(tmp_path, lambda document: document.update(version=version))
    with pytest.raises(CalibrationError, match=rf"version {version!r}; expected version 1"):
        CalibrationTable.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("tensors"), 'no "tensors"'),
        (lambda d: d.update(tensors=[]), 'no "tensors"'),
        (lambda d: d["tensors"].pop("zeros"), "added or lost"),
        (lambda d: d["tensors"].update(extra={}), "added or lost"),
        (lambda d: d.pop("fingerprint"), "added or lost"),
        (lambda d: d["tensors"].update(zeros=5), "'zeros'.*does not fit"),
        (lambda d: d["tensors"].update(zeros=None), "'zeros'.*does not fit"),
        (lambda d: d["tensors"]["zeros"].pop("low"), "'zeros'.*does not fit"),
        (lambda d: d["tensors"]["zeros"].update(scale=1), "'zeros'.*does not fit"),
        (lambda d: d["tensors"]["zeros"].update(histogram={}), "'zeros'.*does not fit"),
        (lambda d: d["tensors"]["zeros"].update(histogram=[1]), "'zeros'.*does not fit"),
        (
            lambda d: d["tensors"]["zeros"].update(histogram={"first": 0, "width": 1, "counts": ["a"]}),
            "'zeros'.*does not fit",
        ),
        (lambda d: d["tensors"]["zeros"].update(low="0"), "table.json, tensor 'zeros'.*lower first"),
        (lambda d: d["tensors"]["zeros"].update(low=1), "'zeros'.*lower first"),
        (lambda d: d["tensors"]["zeros"].update(high=float("nan")), "'zeros'.*lower first"),
        (lambda d: d["tensors"]["zeros"].update(clipping=-1), "'zeros'.*clipping -1; expected a mean square"),
        (lambda d: d["tensors"]["zeros"].update(clipping="0"), "'zeros'.*clipping '0'"),
        (lambda d: d["tensors"]["zeros"].update(saturation=1.5), "'zeros'.*saturation 1.5; expected a share"),
        (lambda d: d["tensors"]["zeros"].update(saturation=-0.1), "'zeros'.*saturation"),
        (lambda d: d["tensors"]["zeros"].update(saturation=float("nan")), "'zeros'.*saturation nan"),
        (lambda d: d["tensors"]["zeros"].update(saturation=None), "'zeros'.*saturation None"),
        (lambda d: d["tensors"]["zeros"].update(batches=-1), "'zeros'.*name and a count"),
        (lambda d: d["tensors"]["zeros"].update(method=None), "'zeros'.*name and a count"),
    ],
)
def test_damaged_entries(tmp_path, change, message):
    with pytest.raises(CalibrationError, match=message):
        CalibrationTable.load(_saved(tmp_path, change))


def test_a_table_fits_its_own_model():
    table = _table()
    table.check_model(table)
    table.check_model([*table, "another tensor"], points=["input"])


def test_a_table_of_another_network_is_refused():
    with pytest.raises(CalibrationError) as caught:
        _table().check_model(["input", "zeros", "cut", "stem"])
    message = str(caught.value)
    assert "no range for 'stem'" in message
    assert "ranges for 'conv \"1\"/ü:0', which the model does not have" in message
    assert _table().fingerprint in message
    with pytest.raises(CalibrationError, match="and 95 more"):
        _table().check_model([f"layer{i}" for i in range(100)])


def test_missing_points_alone_are_refused():
    with pytest.raises(CalibrationError, match="no range for 'new'; expected"):
        _table().check_model([*_table(), "new", "float only"], points=[*_table(), "new"])


def test_fingerprint_depends_on_the_names_alone():
    def fingerprint(*names):
        return CalibrationTable({name: TensorRange(0, 1, "minmax", 1) for name in names}).fingerprint

    assert fingerprint("a", "b") == fingerprint("b", "a")
    assert len({fingerprint("a", "b"), fingerprint("a"), fingerprint("ab"), fingerprint("a,b")}) == 4


def _with_transformed():
    observer = TransformedObserver([(1, 1, 1, 1)])
    observer.update(np.random.default_rng(0).random((1, 3, 8, 8)).astype(np.float32))
    return CalibrationTable(_table(), {"relu": observer.statistics()})


def test_transformed_statistics_survive(tmp_path):
    _with_transformed().save(tmp_path / "t.json")
    loaded = CalibrationTable.load(tmp_path / "t.json")
    assert loaded == _table() and loaded.fingerprint == _table().fingerprint
    assert loaded.transformed["relu"].to_dict() == _with_transformed().transformed["relu"].to_dict()
    assert CalibrationTable.load(_saved(tmp_path)).transformed == {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(transformed=[]), ["no object"]),
        (lambda d: d["transformed"].update(relu=3), ["'relu'", "does not fit"]),
        (lambda d: d["transformed"]["relu"].pop("mean"), ["'relu'", "does not fit"]),
        (lambda d: d["transformed"]["relu"].pop("4x2"), ["'relu'", "does not fit"]),
        (lambda d: d["transformed"]["relu"]["4x4"]["power"].pop(), ["'relu'", "shape"]),
        (lambda d: d["transformed"]["relu"]["4x2"].update(loudness=1.5), ["'relu'", "loudness 1.5"]),
        (lambda d: d["transformed"]["relu"]["2x2"].pop("loudness"), ["'relu'", "does not fit"]),
    ],
)
def test_transformed_statistics_that_do_not_fit_are_refused(tmp_path, change, words):
    path = tmp_path / "t.json"
    _with_transformed().save(path)
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(CalibrationError) as caught:
        CalibrationTable.load(path)
    assert all(word in str(caught.value) for word in words)
