import json
import math
from dataclasses import replace

import pytest

from tvm_int8.schedules.conv2d import Conv2dRule
from tvm_int8.tuning.record import Record
from tvm_int8.tuning.workload import Workload

DTYPES = ("uint8", "int8", "uint8")
SHAPES = (1, 64, 14, 14), (1, 32, 14, 14), (3, 3)
WORKLOAD = Workload("conv2d", *SHAPES, (1, 1), (1, 1, 1, 1), (1, 1), 1, 16, DTYPES, threads=2)
KNOBS = {"pixels": "row", "ow_tile": 14, "oc_tile": 2, "order": "channels", "unroll": 4, "prefetch": "next"}
WHERE = {"cpu": "Intel® Xeon®", "tvm": "0.27.0", "date": "2026-11-28"}
TRIAL = Record(WORKLOAD, "conv2d", Conv2dRule.version, KNOBS, "cascadelake", 10.5, 12.0, 3, **WHERE)
FAILED = replace(TRIAL, time_us=math.inf, heuristic_us=1.0, rounds=0, error="wrong result")


def changed(**fields):
    """A good line with other values."""
    return json.dumps({**json.loads(TRIAL.to_json()), **fields})


def without(*names, record=TRIAL):
    return json.dumps({name: value for name, value in json.loads(record.to_json()).items() if name not in names})


@pytest.mark.parametrize("record", [TRIAL, replace(TRIAL, final=True), FAILED], ids=["trial", "final", "failed"])
def test_round_trip(record):
    line = record.to_json()
    assert "\n" not in line
    assert line.isascii()
    assert Record.from_json(line) == record
    assert Record.from_json(line + "\n").to_json() == line


def test_written_form_is_the_one_in_logs():
    assert list(json.loads(TRIAL.to_json())) == [
        "workload", "target", "template", "version", "knobs", "time_us", "heuristic_us", "rounds", "cpu", "tvm", "date"
    ]  # fmt: skip
    assert json.loads(replace(TRIAL, final=True).to_json())["final"] is True


def test_times_have_four_digits():
    line = replace(TRIAL, time_us=1234.5678, heuristic_us=0.0123456).to_json()
    assert (Record.from_json(line).time_us, Record.from_json(line).heuristic_us) == (1235, 0.01235)


def test_a_failed_record_has_no_times():
    assert not {"time_us", "heuristic_us", "rounds"} & set(json.loads(FAILED.to_json()))
    read = Record.from_json(FAILED.to_json())
    assert (read.time_us, read.ratio, read.error) == (math.inf, math.inf, "wrong result")
    assert Record.from_json(changed(error="timeout")).time_us == math.inf


def test_unknown_fields_survive():
    record = Record.from_json(changed(humidity=0.4, notes={"by": ["me"]}))
    assert record.extra == {"humidity": 0.4, "notes": {"by": ["me"]}}
    again = Record.from_json(record.to_json())
    assert again.extra == record.extra
    assert again == record == TRIAL


def test_rounds_may_be_left_out():
    assert Record.from_json(without("rounds")).rounds == 1


def test_key_and_point():
    assert TRIAL.key == (WORKLOAD, "cascadelake")
    assert TRIAL.ratio == pytest.approx(0.875)
    shuffled = replace(TRIAL, knobs=dict(reversed(KNOBS.items())), time_us=1.0)
    assert TRIAL.point == shuffled.point
    assert TRIAL.point != replace(TRIAL, knobs={**KNOBS, "unroll": 1}).point
    assert TRIAL.point != replace(TRIAL, template="conv2d_amx").point


def test_finals_count_before_trials_fast_before_slow_failures_last():
    slow, fast = replace(TRIAL, time_us=11.9), replace(TRIAL, time_us=6.0)
    final, slow_final = replace(TRIAL, final=True), replace(slow, final=True)
    relative = replace(TRIAL, time_us=20.0, heuristic_us=80.0)  # what counts is the ratio: machines differ
    wanted = [final, slow_final, relative, fast, TRIAL, slow, replace(FAILED, final=True), FAILED]
    found = wanted[::-1]
    found.sort(key=Record.rank)
    assert found == wanted


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "not JSON"),
        ("time_us = 10", "not JSON .*column 1"),
        ("<<<<<<< HEAD", "not JSON"),
        ("\ufffd\ufffd", "not JSON"),
        (TRIAL.to_json() + TRIAL.to_json(), "not JSON .Extra data"),
        ("null", "not a record of this project"),
        ("17", "not a record of this project"),
        ("{}", "not a record of this project"),
        ('"workload template"', "not a record of this project"),
        ('{"workload": {}}', "no workload and template in it"),
    ],
)
def test_what_is_no_record(line, message):
    with pytest.raises(ValueError, match=message):
        Record.from_json(line)


FOREIGN = {
    "MetaSchedule's workload": '["-3917232412307014126", "QkFTRTY0"]',
    "MetaSchedule's record": '[0, [[[["GetSBlock", [], ["conv2d", "main"], ["b0"]]], []], [0.00012], {"kind": "llvm", '
    '"mcpu": "cascadelake"}, [["TENSOR", "float32", [1, 64, 14, 14]]]]]',
    "AutoTVM's": '{"input": ["llvm -mcpu=cascadelake", "conv2d_NCHWc.x86", [["TENSOR", [1, 64, 56, 56], "float32"]], '
    '{}], "config": {"index": 3, "code_hash": null, "entity": [["tile_ic", "sp", [-1, 16]]]}, '
    '"result": [[0.0012], 0, 1.2, 1600000000.0], "version": 0.2, "tvm_version": "0.8.0"}',
    "AutoScheduler's": '{"i": [["[\\"hash\\", 1, 64]", "llvm", [8, 64, 64, 0, 0, 0, 0, 0], "", 1], [[], []]], '
    '"r": [[0.0001], 0, 0.9, 1600000000], "v": "v0.6"}',
}


@pytest.mark.parametrize("name", FOREIGN)
def test_lines_of_others(name):
    json.loads(FOREIGN[name])
    with pytest.raises(ValueError, match="not a record of this project"):
        Record.from_json(FOREIGN[name])


def test_a_line_cut_anywhere_is_no_record():
    line = TRIAL.to_json()
    for end in range(len(line)):
        with pytest.raises(ValueError, match="not JSON"):
            Record.from_json(line[:end])


@pytest.mark.parametrize("name", ["time_us", "heuristic_us", "version", "knobs", "target", "cpu", "tvm", "date"])
def test_missing_fields_are_named(name):
    with pytest.raises(ValueError, match=f"field '{name}' is missing"):
        Record.from_json(without(name))


def test_a_failed_record_needs_no_times_but_the_rest():
    with pytest.raises(ValueError, match="field 'knobs' is missing"):
        Record.from_json(without("knobs", record=FAILED))


@pytest.mark.parametrize("name", ["time_us", "heuristic_us"])
@pytest.mark.parametrize("value", [0, 0.0, -1.5, math.nan, math.inf, -math.inf, 10**400, None, "10", [10.5], True])
def test_times_are_positive_numbers(name, value):
    with pytest.raises(ValueError, match=f"{name} is .*, expected a positive number"):
        Record.from_json(changed(**{name: value}))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rounds", -1, "rounds is -1, expected"),
        ("rounds", 2.5, "rounds is 2.5"),
        ("rounds", True, "rounds is True"),
        ("version", "1", "version is '1'"),
        ("version", None, "version is None"),
        ("knobs", ["row", 14], "knobs are .*expected an object"),
        ("knobs", "row", "knobs are 'row', expected an object"),
        ("target", 512, "target is 512, expected text"),
        ("cpu", None, "cpu is None, expected text"),
        ("date", 20261128, "date is 20261128"),
        ("template", ["conv2d"], "template is .*expected text"),
        ("template", "conv2d_winograd", "no template is called 'conv2d_winograd'"),
        ("template", "", "no template is called ''"),
        ("version", 0, "version 0 of template conv2d, which is at [0-9]+: tune again"),
        ("version", 99, "version 99 of template conv2d"),
        ("workload", "conv2d 1x64x14x14", "a workload is an object"),
        ("workload", {"op": "conv2d"}, "missing or unknown: block, data"),
        ("workload", {**WORKLOAD.to_dict(), "groups": 0}, "groups is 0"),
    ],
)
def test_bad_fields_are_named(name, value, message):
    with pytest.raises(ValueError, match=message):
        Record.from_json(changed(**{name: value}))


def test_a_schedule_that_moved_on_leaves_its_records_behind(monkeypatch):
    line = TRIAL.to_json()
    monkeypatch.setattr(Conv2dRule, "version", Conv2dRule.version + 1)
    with pytest.raises(ValueError, match=f"which is at {Conv2dRule.version}: tune again"):
        Record.from_json(line)
