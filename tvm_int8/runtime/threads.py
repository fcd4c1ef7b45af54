"""How many threads TVM's kernels run on.

TVM keeps a thread pool per calling thread. A pool gets its size when it is first used, cannot grow, and is gone after
a fork. So the pool is made here, of exactly the size that is asked for; where the calling thread has one already that
does not do, the work goes to a thread of our own.

Threads are not bound to CPUs, unless ``TVM_BIND_THREADS=1`` asks for it: TVM would bind the caller as well, to the
first CPUs of the machine whatever the process is allowed to use, and so would every other process. On two cores free
threads were as fast as bound ones.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import tvm

from ..errors import ConfigError
from ..host import default_num_threads, usable_cpus

Result = TypeVar("Result")

os.environ.setdefault("TVM_BIND_THREADS", "0")

_SHARE_CPUS = -3
"""TVM's kSpecifyThreadShareAllCore: a thread may run on any CPU of the list, whose length is the pool's size."""

_pool = threading.local()
_runners: dict[int, ThreadPoolExecutor] = {}
_runners_lock = threading.Lock()
_forked_thread: int | None = None


def check_num_threads(count: object, where: str = "num_threads") -> int | None:
    """Return `count`, a positive integer or None.

    Raises
    ------
    ConfigError
        It is neither.
    """
    if count is None or (isinstance(count, int) and not isinstance(count, bool) and count >= 1):
        return count
    raise ConfigError(where, repr(count), "a whole number from 1, or None for the machine's default", "correct it")


def effective_num_threads(count: int | None) -> int:
    """Return how many threads `count` means on this machine: never more than the CPUs the process may use."""
    return default_num_threads() if count is None else min(count, len(usable_cpus()))


def run_on_threads(function: Callable[[], Result], count: int) -> Result:
    """Call `function`, whose kernels then run on `count` threads, in this thread or one of our own."""
    if _use_threads(count):
        return function()
    with _runners_lock:
        if count not in _runners:
            _runners[count] = ThreadPoolExecutor(1, f"tvm_int8-{count}")
        runner = _runners[count]
    return runner.submit(_call_on_threads, function, count).result()


def _call_on_threads(function: Callable[[], Result], count: int) -> Result:
    _use_threads(count)
    return function()


def _use_threads(count: int) -> bool:
    """Give the calling thread's pool `count` threads; False where it cannot have that many."""
    if getattr(_pool, "count", None) == count:
        return True
    if threading.get_ident() == _forked_thread or count > getattr(_pool, "limit", count):
        return False
    configure = tvm.get_global_func("runtime.config_threadpool")
    configure(_SHARE_CPUS, count, [str(cpu) for cpu in usable_cpus()[:count]])
    _pool.count = tvm.get_global_func("runtime.NumThreads")()
    if _pool.count < count:
        _pool.limit = _pool.count
    return _pool.count == count


def _after_fork() -> None:
    """The forking thread's pool has lost its threads: in the child, that thread must not use it."""
    global _forked_thread, _runners_lock
    _forked_thread = threading.get_ident()
    _runners_lock = threading.Lock()
    _runners.clear()
    _pool.__dict__.clear()


os.register_at_fork(after_in_child=_after_fork)
