"""Tuning logs on disk: JSON lines that several jobs may append to, and that people may edit.

A line is a `Record`, or ``{"header": ...}``, which says in words where the file comes from. Whatever else a line holds
is a `Problem`, reported with file and line, and skipped.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..atomic_file import write_atomically
from ..errors import ArtifactError
from .record import Record

SUFFIX = ".jsonl"


@dataclass(frozen=True)
class Problem:
    """A line that is not used."""

    path: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}, line {self.line}: {self.text}; skipped"


@dataclass
class Log:
    """The content of a log: records in their order, headers, and what could not be read."""

    records: list[Record] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def best(self) -> list[Record]:
        """Return one record per workload and target: the last comparison's winner, else the fastest trial."""
        chosen: dict[tuple, Record] = {}
        for record in self.records:
            held = chosen.get(record.key)
            if not record.error and (held is None or record.rank() < held.rank()):
                chosen[record.key] = record
        return list(chosen.values())


def read_log(*paths: str | os.PathLike[str]) -> Log:
    """Read log files, or all logs in directories, as one.

    Raises
    ------
    ArtifactError
        A file is missing or cannot be read; what single lines hold is no error.
    """
    log = Log()
    for path in _files(paths):
        _read_file(path, log)
    return log


def append(path: str | os.PathLike[str], records: Iterable[Record]) -> None:
    """Add records to a log, on disk when this returns; several processes may do so at once.

    Raises
    ------
    ArtifactError
        The file cannot be written.
    """
    text = "".join(f"{record.to_json()}\n" for record in records).encode()
    with _errors(path, "written"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if file.seek(0, os.SEEK_END) and _last_byte(file) != b"\n":
                text = b"\n" + text  # behind a line that a killed job left unfinished
            file.write(text)
            file.flush()
            os.fsync(file.fileno())


def write_log(path: str | os.PathLike[str], records: Iterable[Record], headers: Iterable[str] = ()) -> None:
    """Write a log anew: all of it, or nothing.

    Raises
    ------
    ArtifactError
        The file cannot be written.
    """
    lines = [*(json.dumps({"header": text}) for text in headers), *(record.to_json() for record in records)]
    write_text(path, "".join(f"{line}\n" for line in lines))


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file under a temporary name, then rename it."""
    with _errors(path, "written"):
        write_atomically(path, text)


def _files(paths: Iterable[str | os.PathLike[str]]) -> Iterator[Path]:
    for path in map(Path, paths):
        with _errors(path, "read"):
            found = _logs_below(path) if path.is_dir() else [path]
        yield from found


def _logs_below(directory: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise error

    walk = os.walk(directory, onerror=refuse)
    return sorted(Path(folder, name) for folder, _, names in walk for name in names if name.endswith(SUFFIX))


def _read_file(path: Path, log: Log) -> None:
    with _errors(path, "read"), open(path, errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                if (header := _header(line)) is not None:
                    log.headers.append(header)
                else:
                    log.records.append(Record.from_json(line))
            except ValueError as error:
                log.problems.append(Problem(str(path), number, str(error)))


def _header(line: str) -> str | None:
    if not line.startswith('{"header"'):
        return None
    with contextlib.suppress(json.JSONDecodeError, RecursionError, TypeError, KeyError):
        return str(json.loads(line)["header"])
    return None


def _last_byte(file) -> bytes:
    file.seek(-1, os.SEEK_END)
    return file.read(1)


@contextlib.contextmanager
def _errors(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        found = f"cannot be {what} ({error.strerror or error})"
        raise ArtifactError(f"tuning log {os.fspath(path)}", found, "a file of JSON lines", "check the path") from error
