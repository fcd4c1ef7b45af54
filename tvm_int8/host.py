"""What this machine is: CPU features, caches, and the CPUs this process may use.

Read from the kernel; nothing here starts a process or imports TVM.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import re
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu")
_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_CGROUP_V1_QUOTA = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
_CGROUP_V1_PERIOD = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")


_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18


@functools.cache
def host_features() -> frozenset[str]:
    """Return this CPU's features under the names of /proc/cpuinfo: ``avx512_vnni``, ``bmi2``, ...

    AMX is among them only if the operating system lets this process use it.
    """
    flags = re.search(r"^flags\s*:(.*)$", _read(Path("/proc/cpuinfo")), re.MULTILINE)
    if flags:
        found = frozenset(flags.group(1).split())
        tiles = frozenset(name for name in found if name.startswith("amx_"))
        return found if not tiles or _may_use_tiles() else found - tiles
    import cpuinfo  # takes a second: only where there is no /proc

    return frozenset(cpuinfo.get_cpu_info().get("flags", []))


def _may_use_tiles() -> bool:
    """Ask Linux for AMX's tile registers, which a process has to do before it uses them."""
    try:
        return ctypes.CDLL(None).syscall(_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA) == 0
    except (OSError, AttributeError):
        return False


@functools.cache
def cpu_model() -> str:
    """Return this CPU's name by its maker, and the numbers that tell models apart where a hypervisor hides it."""
    text = _read(Path("/proc/cpuinfo"))

    def value(field: str) -> str:
        match = re.search(rf"^{field}\s*:\s*(.+)$", text, re.MULTILINE)
        return match.group(1).strip() if match else "?"

    l2_bytes = cache_bytes(2)
    l2 = f", {l2_bytes >> 10} KB L2" if l2_bytes else ""
    numbers = f"family {value('cpu family')}, model {value('model')}, stepping {value('stepping')}{l2}"
    return f"{value('model name')} ({numbers})"


def usable_cpus() -> list[int]:
    """Return the ids of the CPUs this process may run on, ascending."""
    return sorted(os.sched_getaffinity(0))


def default_num_threads() -> int:
    """Return the number of threads a module runs on unless it is told.

    ``TVM_NUM_THREADS``, else ``OMP_NUM_THREADS``, as in TVM; else one per physical core that this process may use, and
    not more than the CPU time its container is given. (TVM itself takes half of the logical CPUs, which is half of the
    machine where there is no hyper-threading.)
    """
    for name in ("TVM_NUM_THREADS", "OMP_NUM_THREADS"):
        value = os.environ.get(name, "").strip()
        if value.isdecimal() and int(value) > 0:
            return min(int(value), len(usable_cpus()))
    return _core_count(tuple(usable_cpus()))


def cache_bytes(level: int) -> int | None:
    """Return the size of this machine's data (or unified) cache of a level, None where the kernel does not say."""
    for index in sorted(_CPUS.glob("cpu0/cache/index*")):
        kind = _read(index / "type").strip()
        size = re.fullmatch(r"(\d+)([KM])", _read(index / "size").strip())
        if _read(index / "level").strip() == str(level) and kind in ("Data", "Unified") and size:
            return int(size.group(1)) << {"K": 10, "M": 20}[size.group(2)]
    return None


@functools.cache
def _core_count(cpus: tuple[int, ...]) -> int:
    cores = {_first_sibling(cpu) for cpu in cpus}
    return max(1, min(len(cores), _quota()))


def _first_sibling(cpu: int) -> str:
    """Name the physical core of a logical CPU by its first hyper-thread."""
    siblings = _read(_CPUS / f"cpu{cpu}/topology/thread_siblings_list").strip()
    return re.split("[,-]", siblings)[0] or str(cpu)


def _quota() -> int:
    """Return how many CPUs' time the control group grants, rounded up."""
    quota, period = (_read(_CGROUP_QUOTA).split() + ["max", "max"])[:2]
    if not quota.isdecimal():
        quota, period = _read(_CGROUP_V1_QUOTA).strip(), _read(_CGROUP_V1_PERIOD).strip()
    if not (quota.isdecimal() and period.isdecimal() and int(period) > 0):
        return len(usable_cpus())
    return max(1, math.ceil(int(quota) / int(period)))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
