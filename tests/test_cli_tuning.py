import csv
import importlib
import json
import math
import os
import socket
from dataclasses import replace
from types import SimpleNamespace

import pytest

import tvm_int8
from tests.cli_testing import assert_one_line_error, run
from tests.runtime_module import build_module
from tvm_int8.cli import main
from tvm_int8.schedules.conv2d import Conv2dRule
from tvm_int8.tuning.log_file import append, read_log, write_log
from tvm_int8.tuning.record import Record
from tvm_int8.tuning.workload import Workload

DTYPES = ("uint8", "int8", "uint8")
SHAPES = (1, 64, 14, 14), (1, 32, 14, 14), (3, 3)
WORKLOAD = Workload("conv2d", *SHAPES, (1, 1), (1, 1, 1, 1), (1, 1), 1, 16, DTYPES, threads=1)
KNOBS = {"pixels": "row", "ow_tile": 14, "oc_tile": 2, "order": "channels", "unroll": 4, "prefetch": "next"}
WHERE = dict(cpu="Xeon, 2 GHz", tvm="0.27.0", date="2026-11-28")
SLOW = Record(WORKLOAD, "conv2d", Conv2dRule.version, KNOBS, "cascadelake", 15.0, 12.0, **WHERE)
FAST = replace(SLOW, time_us=9.0)
OTHER = replace(SLOW, workload=replace(WORKLOAD, threads=4), target="znver4", time_us=4.0)
FAILED = replace(SLOW, time_us=math.inf, heuristic_us=1.0, rounds=0, error="timeout")


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "net.jsonl"
    write_log(path, [SLOW, FAILED, OTHER, FAST, SLOW], ["from a test"])
    return path


def test_list_shows_the_best(capsys, log):
    code, out, err = run(capsys, "logs", "list", log)
    lines = out.splitlines()
    assert (code, err, lines[0]) == (0, "", "# from a test")
    assert lines[1].split()[:4] == ["workload", "target", "template", "knobs"]
    assert [line.split()[-1] for line in lines[3:5]] == ["0.750", "0.333"]
    assert lines[3].startswith("conv2d 1x64x14x14 * 32")
    assert " u8->u8 1t  cascadelake  conv2d " in lines[3]
    assert lines[5:] == ["2 records, 2 faster than the heuristic; 0 lines skipped"]


def test_list_shows_all(capsys, log):
    code, out, _ = run(capsys, "logs", "list", "--all", log)
    assert code == 0
    assert [line.split()[-1] for line in out.splitlines()[3:8]] == ["1.250", "timeout", "0.333", "0.750", "1.250"]
    assert out.endswith("5 records, 2 faster than the heuristic; 0 lines skipped\n")


def test_list_of_nothing(capsys, tmp_path):
    assert run(capsys, "logs", "list", tmp_path) == (
        0, "0 records, 0 faster than the heuristic; 0 lines skipped\n", ""
    )  # fmt: skip


def test_broken_lines_are_reported_with_file_and_line(capsys, log, tmp_path):
    with open(log, "a") as file:
        file.write('<<<<<<< HEAD\n["5", "TVM\'s own"]\n')
    append(log, [replace(FAST, time_us=6.0)])
    outputs = {name: tmp_path / name for name in ("merge", "best", "export")}
    for arguments in (["list"], *([name, "-o", path] for name, path in outputs.items())):
        code, out, err = run(capsys, "logs", arguments[0], log, *arguments[1:])
        assert code == 0
        first, second = err.splitlines()
        assert first.startswith(f"tvm-int8: warning: {log}, line 7: not JSON")
        assert second.startswith(f"tvm-int8: warning: {log}, line 8: not a record of this project")
        assert arguments != ["list"] or out.endswith("; 2 lines skipped\n")
    assert [len(read_log(outputs[name]).records) for name in ("merge", "best")] == [5, 2]
    assert read_log(outputs["best"]).records[0].time_us == 6.0


def test_merge_keeps_each_record_once(capsys, log, tmp_path):
    second, merged = tmp_path / "other.jsonl", tmp_path / "merged.jsonl"
    newer = replace(FAST, time_us=8.0)
    write_log(second, [newer, OTHER], ["from a test", "and another"])
    code, out, err = run(capsys, "logs", "merge", log, second, "-o", merged)
    assert (code, err) == (0, "")
    assert out == f"wrote {merged} (5 of 7 records, the others are repetitions)\n"
    assert read_log(merged).records == [SLOW, FAILED, OTHER, FAST, newer]
    assert read_log(merged).headers == ["from a test", "and another"]


def test_merge_into_one_of_the_logs(capsys, log):
    assert run(capsys, "logs", "merge", log, "-o", log)[0] == 0
    assert read_log(log).records == [SLOW, FAILED, OTHER, FAST]


def test_merge_keeps_what_it_does_not_know(capsys, tmp_path):
    line = json.dumps({**json.loads(FAST.to_json()), "humidity": 0.4})
    (tmp_path / "net.jsonl").write_text(f"{line}\n")
    run(capsys, "logs", "merge", tmp_path / "net.jsonl", "-o", tmp_path / "merged.jsonl")
    assert (tmp_path / "merged.jsonl").read_text() == f"{line}\n"


def test_best(capsys, log, tmp_path):
    path = tmp_path / "best.jsonl"
    code, out, _ = run(capsys, "logs", "best", log, "-o", path)
    assert (code, out) == (0, f"wrote {path} (2 workloads, from 5 records)\n")
    assert (read_log(path).records, read_log(path).headers) == ([FAST, OTHER], ["from a test"])
    run(capsys, "logs", "best", log, "-o", path, "--header", "one", "--header", "two")
    assert read_log(path).headers == ["one", "two"]


def test_export_csv(capsys, log, tmp_path):
    path = tmp_path / "table.csv"
    code, out, _ = run(capsys, "logs", "export", log, "-o", path)
    assert (code, out) == (0, f"wrote {path} (2 workloads)\n")
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["against heuristic"] for row in rows] == ["0.750", "0.333"]
    assert rows[0]["workload"] == str(WORKLOAD)
    assert rows[0]["knobs"] == "pixels=row ow_tile=14 oc_tile=2 order=channels unroll=4 prefetch=next"
    assert (rows[0]["us"], rows[0]["measured on"], rows[0]["date"]) == ("9", "Xeon, 2 GHz", "2026-11-28")


def test_export_json_and_markdown(capsys, log, tmp_path):
    path = tmp_path / "table"
    run(capsys, "logs", "export", log, "-o", path, "--format", "json")
    assert json.loads(path.read_text()) == [json.loads(record.to_json()) for record in (FAST, OTHER)]
    run(capsys, "logs", "export", log, "-o", path, "--format", "markdown")
    lines = path.read_text().splitlines()
    assert lines[0].startswith("| workload | target |")
    assert lines[1].count("---") == 8
    assert {line.count("|") for line in lines} == {9}


def test_missing_logs_are_one_line(capsys, log, tmp_path):
    missing = tmp_path / "none.jsonl"
    for arguments in (["list"], ["merge", "-o", tmp_path / "x"], ["best", "-o", tmp_path / "x"], ["verify"]):
        result = run(capsys, "logs", arguments[0], log, missing, *arguments[1:])
        assert_one_line_error(result, f"tuning log {missing}: cannot be read (No such file", "check the path")
    assert os.listdir(tmp_path) == ["net.jsonl"]


@pytest.mark.parametrize("action", ["merge", "best", "export"])
def test_outputs_that_cannot_be_written(capsys, log, tmp_path, action):
    result = run(capsys, "logs", action, log, "-o", tmp_path / "none" / "out")
    assert_one_line_error(result, f"{tmp_path / 'none' / 'out'}: cannot be written")


def test_debug_shows_the_traceback(capsys, tmp_path):
    code, _, err = run(capsys, "logs", "list", tmp_path / "none.jsonl", "--debug")
    assert code == 2
    assert "Traceback" in err


@pytest.fixture
def compiled(monkeypatch):
    """Options that `tvm_int8.compile` was called with."""
    calls = []

    def compile(model, **options):
        calls.append(options)
        return build_module()

    monkeypatch.setitem(vars(tvm_int8), "compile", compile)
    return calls


def test_compile_passes_logs_on(capsys, compiled, tmp_path):
    path = tmp_path / "net.so"
    run(capsys, "compile", "m.onnx", "-o", path, "--tuning-log", "b.jsonl", "--tuning-log", "a.jsonl")
    run(capsys, "compile", "m.onnx", "-o", path, "--untuned")
    run(capsys, "compile", "m.onnx", "-o", path)
    assert [options.get("tuning_logs", "default") for options in compiled] == [["b.jsonl", "a.jsonl"], None, "default"]


def test_compile_conflicts(capsys, compiled, log, tmp_path):
    result = run(capsys, "compile", "m.onnx", "-o", tmp_path / "net.so", "--untuned", "--tuning-log", log)
    assert_one_line_error(result, "--untuned", "--tuning-log", "leave one out")
    assert compiled == []


def test_compile_with_a_missing_log(capsys, tmp_path):
    arguments = ["compile", "m.onnx", "-o", tmp_path / "net.so", "--tuning-log", tmp_path / "none.jsonl"]
    assert_one_line_error(run(capsys, *arguments), "none.jsonl: cannot be read (No such file")


@pytest.fixture
def closed_port():
    """A port of this machine that nobody listens on."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.mark.parametrize(
    "address", ["nonsense", "host", "host:", ":9190", "host:port", "host:0", "host:70000", "a b:9190"]
)
def test_bad_tracker_addresses(capsys, address):
    worker = run(capsys, "worker", "--tracker", address, "--key", "znver4")
    assert_one_line_error(worker, "option 'tracker'", repr(address), "host:port of a tracker")
    tune = run(capsys, "tune", "m.onnx", "--tracker", address)
    assert_one_line_error(tune, repr(address), "host:port of a tracker", "tvm.exec.rpc_tracker")


def test_unreachable_trackers(capsys, closed_port):
    address = f"127.0.0.1:{closed_port}"
    for command in (["worker", "--key", "znver4"], ["tune", "m.onnx"]):
        result = run(capsys, *command, "--tracker", address)
        assert_one_line_error(result, f"tracker {address}: cannot be reached", f"--port {closed_port}")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--minutes", "0"], ["option 'minutes'", "0.0", "a positive number"]),
        (["--minutes", "nan"], ["option 'minutes'", "nan"]),
        (["--timeout", "-1"], ["option 'timeout_s'", "-1.0"]),
        (["--target", "z80"], ["z80"]),
        ([], ["none.onnx"]),
    ],
)
def test_tune_errors_are_one_line(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert_one_line_error(run(capsys, "tune", "none.onnx", *arguments), *words)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["tune"],
        ["tune", "m.onnx", "--trials", "0"],
        ["tune", "m.onnx", "--trials", "-3"],
        ["tune", "m.onnx", "--trials", "many"],
        ["tune", "m.onnx", "--threads", "0"],
        ["tune", "m.onnx", "--minutes", "long"],
        ["tune", "m.onnx", "--search", "genetic"],
        ["worker"],
        ["worker", "--tracker", "127.0.0.1:9190"],
        ["worker", "--key", "znver4"],
        ["logs"],
        ["logs", "list"],
        ["logs", "frobnicate", "net.jsonl"],
        ["logs", "merge", "net.jsonl"],
        ["logs", "export", "net.jsonl", "-o", "x", "--format", "xml"],
    ],
)
def test_usage_errors(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err


@pytest.fixture
def tunings(monkeypatch):
    """Calls of `tune`, and what it pretends to return."""
    fake = SimpleNamespace(calls=[], stopped="converged")

    class Result:
        stopped = property(lambda self: fake.stopped)

        def __str__(self):
            return "1.5x as fast"

    def tune(*arguments, **options):
        fake.calls.append((arguments, options))
        return Result()

    monkeypatch.setattr(importlib.import_module("tvm_int8.tuning.tune"), "tune", tune)
    return fake


def test_tune_passes_options_on(capsys, tunings):
    assert run(capsys, "tune", "m.onnx") == (0, "1.5x as fast\n", "")
    options = ["--target", "znver4", "--log", "x.jsonl", "--trials", 5, "--minutes", 1.5, "--threads", 3, "--float32"]
    options += ["--search", "random", "--timeout", 7, "--seed", 9, "--tracker", "h:9190", "--key", "k", "--quiet"]
    run(capsys, "tune", "m.onnx", *options, "--input-shape", "x=1,3,8,8")
    assert tunings.calls[0][0] == ("m.onnx", "native", None, None, "local")
    assert tunings.calls[0][1]["quantization"] == tvm_int8.QuantizationConfig()
    assert tunings.calls[1] == (
        ("m.onnx", "znver4", 5, "x.jsonl", "h:9190"),
        dict(key="k", minutes=1.5, num_threads=3, quantization=None, search="random", timeout_s=7.0, seed=9,
             progress=False, input_shapes={"x": (1, 3, 8, 8)}),
    )  # fmt: skip


def test_tune_that_was_interrupted(capsys, tunings):
    tunings.stopped = "interrupted"
    assert run(capsys, "tune", "m.onnx") == (130, "1.5x as fast\n", "")


def test_worker_passes_options_on(capsys, monkeypatch):
    calls = []
    monkeypatch.setattr(
        importlib.import_module("tvm_int8.tuning.fleet"), "serve", lambda *options: calls.append(options)
    )
    run(capsys, "worker", "--tracker", "h:9190", "--key", "znver4")
    run(capsys, "worker", "--tracker", "h:9190", "--key", "znver4", "--host", "10.0.0.7")
    assert calls == [("h:9190", "znver4", "127.0.0.1"), ("h:9190", "znver4", "10.0.0.7")]
