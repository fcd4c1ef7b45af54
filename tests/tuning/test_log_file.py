import contextlib
import json
import math
import multiprocessing
import os
import resource
from dataclasses import replace

import pytest

from tvm_int8.errors import ArtifactError
from tvm_int8.schedules.conv2d import Conv2dRule
from tvm_int8.tuning.log_file import Log, append, read_log, write_log, write_text
from tvm_int8.tuning.record import Record
from tvm_int8.tuning.workload import Workload

DTYPES = ("uint8", "int8", "uint8")
SHAPES = (1, 64, 14, 14), (1, 32, 14, 14), (3, 3)
WORKLOAD = Workload("conv2d", *SHAPES, (1, 1), (1, 1, 1, 1), (1, 1), 1, 16, DTYPES, threads=1)
KNOBS = {"pixels": "row", "ow_tile": 14, "oc_tile": 2, "order": "channels", "unroll": 4, "prefetch": "next"}
RECORD = Record(WORKLOAD, "conv2d", Conv2dRule.version, KNOBS, "cascadelake", 10.0, 12.0, cpu="a CPU")
NOBODY = 65534


def timed(time_us, **changes):
    return replace(RECORD, time_us=float(time_us), **changes)


def times(log):
    return [record.time_us for record in log.records]


@contextlib.contextmanager
def unprivileged():
    """Without root's right to read and write everything."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@contextlib.contextmanager
def largest_file(size):
    """As on a full disk: no file becomes larger."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_append_and_read(tmp_path):
    path = tmp_path / "new" / "directory" / "net.jsonl"
    append(path, [timed(1), timed(2)])
    append(str(path), iter([timed(3, error="")]))
    append(path, [])
    log = read_log(path)
    assert log.records == [timed(1), timed(2), timed(3)]
    assert (log.headers, log.problems) == ([], [])
    assert path.read_bytes().count(b"\n") == 3


def test_write_and_read(tmp_path):
    path = tmp_path / "net.jsonl"
    append(path, [timed(9)])
    headers = ["tuned on a laptop", 'two\nlines, "quoted", ü']
    write_log(path, [timed(1), timed(2)], headers)
    log = read_log(path)
    assert (log.records, log.headers, log.problems) == ([timed(1), timed(2)], headers, [])
    assert path.read_bytes().count(b"\n") == 4
    write_log(path, [])
    assert read_log(path) == Log()
    assert path.stat().st_mode & 0o777 == 0o644


def test_several_logs_are_one(tmp_path):
    paths = [tmp_path / "b.jsonl", tmp_path / "a.jsonl"]
    write_log(paths[0], [timed(1)], ["b"])
    write_log(paths[1], [timed(2)], ["a"])
    assert (times(read_log(*paths)), read_log(*paths).headers) == ([1, 2], ["b", "a"])
    assert read_log() == Log()


def test_directories_are_read_recursively(tmp_path):
    for i, name in enumerate(["b.jsonl", "a/deep/down/z.jsonl", "a/y.jsonl"]):
        append(tmp_path / name, [timed(i + 1)])
    (tmp_path / "a" / "README.md").write_text("no log")
    (tmp_path / "a" / "net.json").write_text("{}")
    log = read_log(tmp_path)
    assert (times(log), log.problems) == ([2, 3, 1], [])
    (tmp_path / "empty").mkdir()
    assert read_log(tmp_path / "empty") == Log()


def test_problems_carry_file_and_line_and_nothing_else_is_lost(tmp_path):
    path = tmp_path / "net.jsonl"
    good = [timed(i).to_json() for i in range(1, 5)]
    foreign = '{"input": ["llvm", "conv2d", [], {}], "config": {}, "result": [[0.1], 0, 1, 1], "version": 0.2}'
    bad_time = good[0].replace('"time_us": 1.0', '"time_us": -1.0')
    lines = [good[0], "<<<<<<< HEAD", good[1], "", "   ", foreign, bad_time, '{"header": "here"}', good[2]]
    lines += ['{"header": "cut', good[3][:40], good[3]]
    path.write_text("\n".join(lines) + "\n")
    log = read_log(path)
    assert times(log) == [1, 2, 3, 4]
    assert log.headers == ["here"]
    assert [problem.line for problem in log.problems] == [2, 6, 7, 10, 11]
    assert {problem.path for problem in log.problems} == {str(path)}
    assert "time_us is -1.0" in log.problems[2].text
    assert str(log.problems[1]).startswith(f"{path}, line 6: not a record of this project")
    assert str(log.problems[1]).endswith("; skipped")


def test_line_numbers_start_again_in_every_file(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(f"{RECORD.to_json()}\nrubbish\n")
    found = [(os.path.basename(problem.path), problem.line) for problem in read_log(tmp_path).problems]
    assert found == [("a.jsonl", 2), ("b.jsonl", 2)]


def test_other_ends_of_lines_and_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "net.jsonl"
    path.write_bytes(f"{timed(1).to_json()}\r\n".encode() + b"\xff\xfe\x00\x80\r\n" + timed(2).to_json().encode())
    log = read_log(path)
    assert times(log) == [1, 2]
    assert [problem.line for problem in log.problems] == [2]


@pytest.mark.parametrize("kept", [0.3, 0.999])
def test_append_behind_a_line_that_was_cut_off(tmp_path, kept):
    path = tmp_path / "net.jsonl"
    append(path, [timed(1), timed(2)])
    content = path.read_bytes()
    first = content.index(b"\n") + 1
    path.write_bytes(content[: first + int(kept * (len(content) - first)) - 1])
    append(path, [timed(3)])
    append(path, [timed(4)])
    log = read_log(path)
    assert times(log) == [1, 3, 4]
    assert [problem.line for problem in log.problems] == [2]


def test_append_behind_a_last_line_without_its_end(tmp_path):
    path = tmp_path / "net.jsonl"
    path.write_text(timed(1).to_json())
    append(path, [timed(2)])
    assert (times(read_log(path)), read_log(path).problems) == ([1, 2], [])


def test_a_full_disk_costs_one_line(tmp_path):
    path = tmp_path / "net.jsonl"
    append(path, [timed(1)])
    with largest_file(path.stat().st_size + 100), pytest.raises(ArtifactError, match=r"net\.jsonl: cannot be written"):
        append(path, [timed(2)])
    append(path, [timed(3)])
    assert times(read_log(path)) == [1, 3]
    assert [problem.line for problem in read_log(path).problems] == [2]


def append_each(path, start, records):
    start.wait()
    for record in records:
        append(path, [record])


def test_two_processes_append_at_once(tmp_path):
    path, count = tmp_path / "net.jsonl", 100
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(2, timeout=60)
    shares = [[timed(i + 1) for i in range(at, at + count)] for at in (0, count)]
    processes = [context.Process(target=append_each, args=(path, start, share)) for share in shares]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    log = read_log(path)
    assert log.problems == []
    assert sorted(times(log)) == list(range(1, 2 * count + 1))
    for share in shares:
        own = [time for time in times(log) if time in {record.time_us for record in share}]
        assert own == sorted(own)


def test_a_failing_write_leaves_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "net.jsonl"
    write_log(path, [timed(1)], ["old"])
    old = path.read_bytes()
    with largest_file(100), pytest.raises(ArtifactError, match=r"net\.jsonl: cannot be written"):
        write_log(path, [timed(i + 1) for i in range(100)])
    with pytest.raises(TypeError):
        write_log(path, [timed(2), timed(3, knobs={"oc_tile": {1, 2}})])

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_log(path, [timed(2)])
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["net.jsonl"]


def test_a_failing_first_write_leaves_nothing(tmp_path):
    with largest_file(100), pytest.raises(ArtifactError, match="cannot be written"):
        write_text(tmp_path / "table.csv", "x" * 10_000)
    assert os.listdir(tmp_path) == []


def test_missing_files(tmp_path):
    append(tmp_path / "there.jsonl", [RECORD])
    with pytest.raises(ArtifactError, match=r"none\.jsonl: cannot be read \(No such file.*check the path"):
        read_log(tmp_path / "there.jsonl", tmp_path / "none.jsonl")
    with pytest.raises(ArtifactError, match="cannot be written"):
        write_log(tmp_path / "none" / "net.jsonl", [RECORD])


def test_directories_and_files_in_each_others_place(tmp_path):
    file = tmp_path / "net.jsonl"
    append(file, [RECORD])
    for write in (append, write_log):
        for path in (tmp_path, file / "deeper.jsonl"):
            with pytest.raises(ArtifactError, match="cannot be written"):
                write(path, [RECORD])
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_log(file / "deeper.jsonl")
    assert os.listdir(tmp_path) == ["net.jsonl"]


def test_a_directory_without_permission(tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o500)
    for write in (append, write_log):
        for path in (locked / "net.jsonl", locked / "deeper" / "net.jsonl"):
            with unprivileged(), pytest.raises(ArtifactError, match="cannot be written"):
                write(path, [RECORD])
    assert os.listdir(locked) == []


def test_headers_are_words(tmp_path):
    path = tmp_path / "net.jsonl"
    path.write_text('{"header": "from here"}\n{"header": 5}\n')
    append(path, [RECORD])
    assert read_log(path).headers == ["from here", "5"]
    assert json.loads(path.read_text().splitlines()[0]) == {"header": "from here"}


def test_best():
    slow, fast, final = timed(11), timed(6), timed(9, final=True)
    failed = timed(math.inf, heuristic_us=1.0, error="wrong result")
    other_cpu, other_threads = timed(3, target="znver4"), timed(4, workload=replace(WORKLOAD, threads=8))
    assert Log([slow, fast, failed]).best() == [fast]
    assert Log([slow, other_cpu, final, other_threads, fast, failed]).best() == [final, other_cpu, other_threads]
    assert Log([timed(9, final=True), timed(8, final=True), timed(7)]).best() == [timed(8, final=True)]
    assert Log([failed]).best() == Log().best() == []
