"""A fleet of machines that measure: TVM's RPC tracker, and the server that each of them runs.

TVM's RPC trusts its network: whoever reaches a server can run code there. Servers bind to loopback unless told
otherwise.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import sys
import threading
from typing import Any

from tvm.rpc.base import RPC_TRACKER_MAGIC
from tvm.s_tir.meta_schedule.runner import RPCConfig

from tvm_int8.errors import ConfigError

LOOPBACK = "127.0.0.1"
_CONNECT_S = 5.0
_PORTS = (9090, 9199)
_POLL_S = 0.5
_TRACKER_MAGIC = struct.pack("<i", RPC_TRACKER_MAGIC)


def parse_address(address: str, option: str = "runner") -> tuple[str, int]:
    """``host:port`` -> (host, port).

    Raises
    ------
    ConfigError
        It is something else.
    """
    match = re.fullmatch(r"\[?([^\[\]\s]+?)\]?:(\d{1,5})", str(address))
    if not match or not 0 < int(match[2]) < 65536:
        expected = "'local', or host:port of a tracker" if option == "runner" else "host:port of a tracker"
        raise ConfigError(
            f"option {option!r}", repr(address), expected, "start one with python -m tvm.exec.rpc_tracker"
        )
    return match[1], int(match[2])


def connect(address: str, key: str, timeout_s: float) -> tuple[RPCConfig, int]:
    """Return how to reach machines through a tracker, and how many there are.

    Raises
    ------
    ConfigError
        No tracker answers, or no machine is registered under the key.
    """
    host, port = parse_address(address)
    where = f"tracker {host}:{port}"
    _check_reachable(host, port, where)
    config = RPCConfig(host, port, key, session_timeout_sec=int(timeout_s))
    try:
        summary = config.connect_tracker().summary()
    except Exception as error:
        found = f"something that is no TVM RPC tracker ({type(error).__name__})"
        raise ConfigError(where, found, "a tracker", "check host and port") from error
    servers = sum(server["key"] == f"server:{key}" for server in summary["server_info"])
    if not servers:
        known = sorted({server["key"].removeprefix("server:") for server in summary["server_info"]})
        found = f"no machine under the key {key!r} (it knows {', '.join(known) or 'none at all'})"
        raise ConfigError(where, found, "at least one", f"run tvm-int8 worker --tracker {address} --key {key} there")
    return config, servers


def serve(tracker: str, key: str, host: str = LOOPBACK) -> None:
    """Offer this machine to a tracker until the process is ended.

    Parameters
    ----------
    tracker : str
        ``host:port``.
    key : str
        Under which the tracker knows it; the CPU's name in LLVM by convention.
    host : str
        Address to listen on; the default is only reached from this machine.

    Raises
    ------
    ConfigError
        The tracker does not answer, or no port is free.
    """
    import tvm_int8.runtime.threads  # noqa: F401  threads of kernels are not bound to CPUs

    tracker_host, tracker_port = parse_address(tracker, "tracker")
    _check_reachable(tracker_host, tracker_port, f"tracker {tracker_host}:{tracker_port}")
    home = os.getcwd()
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            server = _start_server(host, key, (tracker_host, tracker_port))
            print(f"serving on {host}:{server.port} as {key!r}, tracker {tracker}; Ctrl-C ends it", flush=True)
            while server.thread.is_alive():
                server.thread.join(_POLL_S)
            server.sock.close()  # TVM's server ends where a session's process crashes, in that session's directory
            os.chdir(home)


def _start_server(host: str, key: str, tracker: tuple[str, int]) -> Any:
    """TVM's RPC server in a thread of this process, which forks one for every session."""
    from tvm.rpc.server import PopenRPCServerState

    threading.excepthook = lambda arguments: print(f"session ended: {arguments.exc_value}", file=sys.stderr, flush=True)
    address = None if host in ("0.0.0.0", "::") else host
    first, last = _PORTS
    try:
        return PopenRPCServerState(host, first, last, tracker_addr=tracker, key=key, custom_addr=address, silent=True)
    except (OSError, ValueError) as error:
        expected = f"an address of this machine, and a free port from {first} to {last}"
        raise ConfigError(f"worker on {host}", f"cannot listen ({error})", expected, "check --host") from error


def _check_reachable(host: str, port: int, where: str) -> None:
    try:
        with socket.create_connection((host, port), _CONNECT_S) as connection:
            connection.sendall(_TRACKER_MAGIC)
            answer = connection.recv(len(_TRACKER_MAGIC))
    except OSError as error:
        found = f"cannot be reached ({error.strerror or error})"
        action = f"start it: python -m tvm.exec.rpc_tracker --host {host} --port {port}"
        raise ConfigError(where, found, "a running TVM RPC tracker", action) from error
    if answer != _TRACKER_MAGIC:
        raise ConfigError(where, "something else that listens there", "a TVM RPC tracker", "check host and port")
