"""Machines behind TVM's RPC tracker: what is said when there are none, and a job whose machines die."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tvm_int8.errors import ConfigError
from tvm_int8.tuning.fleet import connect, parse_address, serve
from tvm_int8.tuning.log_file import read_log
from tvm_int8.tuning.tune import tune
from tvm_int8.tuning.workload import Workload

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 240
INT8 = ("uint8", "int8", "uint8")
KEY = "cascadelake-for-tests"


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:9190", ("127.0.0.1", 9190)),
        ("fleet.example.org:1", ("fleet.example.org", 1)),
        ("[localhost]:65535", ("localhost", 65535)),
    ],
)
def test_addresses(address, expected):
    assert parse_address(address) == expected


@pytest.mark.parametrize(
    "address", ["", "host", "host:", ":9190", "host:0", "host:65536", "host:123456", "a b:1", 9190]
)
def test_what_is_no_address(address):
    with pytest.raises(ConfigError, match="host:port of a tracker"):
        parse_address(address)
    with pytest.raises(ConfigError, match="option 'tracker'"):
        parse_address(address, "tracker")


def test_nobody_answers():
    address = f"127.0.0.1:{free_port()}"
    for call in (lambda: connect(address, KEY, 5), lambda: serve(address, KEY)):
        with pytest.raises(ConfigError, match=f"tracker {address}: cannot be reached .*rpc_tracker"):
            call()


def test_something_that_is_no_tracker():
    """It takes connections and says something else."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"tracker {address}: something .*a TVM RPC tracker"):
            connect(address, KEY, 5)
        server.shutdown(socket.SHUT_RDWR)


class Fleet:
    """A tracker and workers on loopback; `close` ends them and all that they started."""

    def __init__(self, directory):
        self.directory, self.processes = directory, []
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        ends = ["--host", "127.0.0.1", "--port", str(port), "--port-end", str(port + 1), "--silent"]
        tracker = self.start("-m", "tvm.exec.rpc_tracker", *ends)
        deadline = time.monotonic() + PATIENCE_S
        while tracker.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 5).close()
                return
            time.sleep(0.1)
        self.close()
        raise AssertionError((directory / "0.txt").read_text())

    def start(self, *arguments):
        with open(self.directory / f"{len(self.processes)}.txt", "wb") as output:
            process = subprocess.Popen(
                [sys.executable, *arguments], cwd=ROOT, stdout=output, stderr=output, start_new_session=True
            )
        self.processes.append(process)
        return process

    def worker(self):
        return self.start("-m", "tvm_int8", "worker", "--tracker", self.address, "--key", KEY)

    def wait_for(self, machines):
        """Until the tracker knows this many."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(ConfigError):
                if connect(self.address, KEY, 30)[1] >= machines:
                    return
            outputs = [path.read_text() for path in sorted(self.directory.glob("*.txt"))]
            assert time.monotonic() < deadline, outputs
            assert all(process.poll() is None for process in self.processes), outputs
            time.sleep(0.2)

    def close(self):
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def fleet(tmp_path):
    started = Fleet(tmp_path)
    yield started
    started.close()


def workload(c, o):
    return Workload("conv2d", (1, c, 8, 8), (1, o, 8, 8), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, 16, INT8, 1)


@pytest.mark.slow
@pytest.mark.isa("avx512vnni")
def test_a_job_survives_the_death_of_a_machine(fleet, tmp_path):
    workers = [fleet.worker(), fleet.worker()]
    fleet.wait_for(2)
    with pytest.raises(ConfigError, match=f"no machine under the key 'znver9' .*{KEY}"):
        connect(fleet.address, "znver9", 5)

    log, workloads = tmp_path / "log.jsonl", [workload(16, 16), workload(16, 32)]

    def kill_one():
        while not log.exists() and workers[0].poll() is None:
            time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(workers[0].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    result = tune(workloads, "cascadelake", 16, log, fleet.address, key=KEY, num_threads=1, progress=False)
    killer.join(PATIENCE_S)
    assert workers[0].wait(PATIENCE_S) == -signal.SIGKILL
    assert (result.workloads, result.tuned, result.failed) == (2, 2, 0)
    records = read_log(log).records
    assert not any(record.error for record in records)
    assert {record.workload for record in records if record.final} == set(workloads)
    assert all(record.cpu.startswith("behind tracker") for record in records)
