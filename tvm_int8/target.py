"""The CPU to compile for: from what a user writes to a TVM target and the CPU model that schedules ask.

TVM 0.27 dropped the command-line form ``llvm -mcpu=cascadelake`` and takes any dict; an unknown triple makes LLVM crash
and an unknown CPU or feature is ignored with a line on stderr. So everything is checked here before TVM or LLVM see it.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import tvm
from tvm.target import codegen

from .errors import TargetError, TvmInt8Error
from .host import cache_bytes, default_num_threads, host_features
from .schedules.cpu import Cpu

_TRIPLE = "x86_64-unknown-linux-gnu"
_ACTION = 'write for instance "llvm -mcpu=cascadelake", "znver4" or "native"'

_AVX2 = {"avx2", "fma"}
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}


@dataclass(frozen=True)
class _Isa:
    """An instruction set: how products are accumulated, the features that needs, vector width and registers."""

    dot: str
    features: frozenset[str]
    vector_bits: int
    vector_registers: int


_ISAS = (
    _Isa("avx512vnni", frozenset(_AVX512 | {"avx512vnni"}), 512, 32),
    _Isa("avx512bw", frozenset(_AVX512), 512, 32),
    _Isa("avxvnni", frozenset(_AVX2 | {"avxvnni"}), 256, 16),
    _Isa("avx2", frozenset(_AVX2), 256, 16),
)
"""Best first."""

_AMX = frozenset({"amx-tile", "amx-int8"})
"""What tile kernels need beside AVX512-VNNI."""

_OPTIONS = {"mcpu", "mattr", "mtriple", "num-cores"}
_IGNORED = {"kind", "keys", "tag", "device", "model", "host", "libs"}
"""Keys of a TVM target that change nothing here."""

_CPUINFO_NAMES = {
    **{name: name for name in ("sse", "sse2", "ssse3", "popcnt", "bmi2", "movbe", "cx16", "fma", "f16c", "gfni")},
    **{name: name for name in ("avx", "avx2", "avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl")},
    **{name: name for name in ("avx512ifma", "avx512vbmi")},
    **{f"avx512{name}": f"avx512_{name}" for name in ("vbmi2", "vnni", "bitalg", "vpopcntdq", "bf16", "fp16")},
    **{name: name for name in ("sse4a", "xop", "fma4", "tbm")},
    "sse3": "pni",
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
    "lzcnt": "abm",
    "bmi": "bmi1",
    "avxvnni": "avx_vnni",
    "avxifma": "avx_ifma",
    "amx-tile": "amx_tile",
    "amx-int8": "amx_int8",
}
"""LLVM's features that kernels ask for or its code generator uses unasked -> their names in /proc/cpuinfo. Features
that neither does (AES, SHA, ...) and those of the operating system are left out: a virtual machine may hide them."""

_UNCHECKED = {"avx10.2", "egpr"}
"""Used unasked as well, but without a /proc/cpuinfo name to check before running."""

_CACHES_KB = {
    "icelake-client": (48, 512),
    "rocketlake": (48, 512),
    "tigerlake": (48, 1280),
    "icelake-server": (48, 1280),
    "sapphirerapids": (48, 2048),
    "emeraldrapids": (48, 2048),
    "graniterapids": (48, 2048),
    "graniterapids-d": (48, 2048),
    "znver5": (48, 1024),
    "alderlake": (48, 1280),
    "raptorlake": (48, 2048),
    "arrowlake": (48, 2560),
    "sierraforest": (32, 4096),
    **dict.fromkeys(("haswell", "broadwell", "skylake", "x86-64-v3"), (32, 256)),
    **dict.fromkeys(("znver1", "znver2", "znver3"), (32, 512)),
}
"""L1 data and L2 of one core in KB; 32 KB and 1 MB elsewhere (Skylake-SP to Cooper Lake, Zen 4)."""


@dataclass(frozen=True)
class ResolvedTarget:
    """A checked target.

    Parameters
    ----------
    tvm_target : tvm.target.Target
        For code generation; ``str()`` of it is JSON.
    cpu : Cpu
        For schedules.
    mcpu : str
        LLVM's name of the CPU.
    features : tuple of str
        What a machine must have to run the code, under the names of /proc/cpuinfo.
    """

    tvm_target: tvm.target.Target
    cpu: Cpu
    mcpu: str
    features: tuple[str, ...]


def parse_target(target: Any = "native") -> ResolvedTarget:
    """Understand and check a target.

    Parameters
    ----------
    target : str, dict or tvm.target.Target
        ``"llvm -mcpu=cascadelake [-mattr=+a,-b] [-num-cores=4] [-mtriple=...]"``, a CPU's name in LLVM
        (``"znver4"``), ``"native"`` for this machine's, or TVM's JSON or dict form with the same keys.

    Returns
    -------
    ResolvedTarget
        The number of threads schedules are made for is ``-num-cores``, else this machine's default.

    Raises
    ------
    TargetError
        The target is not an x86 CPU with AVX2, or an option is unknown; the message lists what is supported.

    Examples
    --------
    >>> parse_target("llvm -mcpu=cascadelake").cpu.dot, parse_target("haswell").cpu.dot
    ('avx512vnni', 'avx2')
    """
    where = f"target {str(target)!r}"
    try:
        options = _options(target, where)
        return _resolve(options, where)
    except TvmInt8Error:
        raise
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        found = f"TVM does not accept it ({lines[-1][:200]})"
        raise TargetError(where, found, "an LLVM CPU target", _ACTION) from error


@functools.cache
def supported_mcpus() -> tuple[str, ...]:
    """Return the names of the CPUs this compiler generates code for."""
    names = {_canonical(name) for name in _known_mcpus()}
    return tuple(sorted(name for name in names if _isa(_llvm_features(name)) and not _llvm_features(name) & _UNCHECKED))


def required_cpu_features(mcpu: str, mattr: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the features, as in /proc/cpuinfo, that code for a CPU may use; sorted."""
    features = _llvm_features(mcpu, tuple(mattr))
    return tuple(sorted(_CPUINFO_NAMES[name] for name in features if name in _CPUINFO_NAMES))


def missing_features(features: Iterable[str]) -> list[str]:
    """Return those of the features (as in /proc/cpuinfo) that this machine does not have."""
    return sorted(set(features) - host_features())


def check_host(features: Iterable[str], where: str, error: type[TvmInt8Error] = TargetError) -> None:
    """Raise `error` unless this machine has all features (as in /proc/cpuinfo)."""
    missing = missing_features(features)
    if missing:
        raise error(
            where,
            f"this CPU has no {', '.join(missing)}",
            "a CPU with every feature the code was compiled for",
            'run it on such a machine, or compile for this one (target="native")',
        )


def _options(target: Any, where: str) -> dict[str, Any]:
    """Return the target's options in TVM's dict form."""
    if isinstance(target, tvm.target.Target):
        target = {"kind": target.kind.name, **_plain(target.attrs)}
    if isinstance(target, str):
        text = target.strip()
        target = json.loads(text) if text.startswith("{") else _parse_command_line(text, where)
    if not isinstance(target, Mapping):
        raise TargetError(where, f"a {type(target).__name__}", "a string, a dict or a tvm Target", _ACTION)
    options = {str(key): value for key, value in target.items() if not str(key).startswith("feature.")}
    if str(options.get("kind", "llvm")) != "llvm":
        raise TargetError(where, f"kind {str(options['kind'])!r}", "kind 'llvm', an x86 CPU", _ACTION)
    for key in sorted(set(options) - _OPTIONS - _IGNORED):
        close = difflib.get_close_matches(key, _OPTIONS, 1)
        action = f"did you mean {close[0]!r}?" if close else "remove it"
        raise TargetError(where, f"unknown option {key!r}", "only " + ", ".join(sorted(_OPTIONS)), action)
    return options


def _plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the triple that TVM adds to ``Target("llvm")`` by itself."""
    return {str(k): v for k, v in attributes.items() if not (k == "mtriple" and v == codegen.llvm_get_system_triple())}


def _parse_command_line(text: str, where: str) -> dict[str, Any]:
    """``llvm -mcpu=a -mattr=+b,-c`` -> {"kind": "llvm", "mcpu": "a", "mattr": "+b,-c"}; a lone CPU name as well."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise TargetError(where, f"cannot be read ({error})", "a target", _ACTION) from error
    if not words:
        raise TargetError(where, "empty", "a target", _ACTION)
    kind, *rest = words
    if not rest and kind != "llvm" and kind not in tvm.target.Target.list_kinds():
        return {"kind": "llvm", "mcpu": kind}
    options: dict[str, Any] = {"kind": kind}
    while rest:
        option = re.fullmatch(r"--?([a-z][a-z-]*)(?:=(.*))?", rest.pop(0), re.DOTALL)
        if not option:
            raise TargetError(where, "words that are not options", "llvm -option=value ...", _ACTION)
        name, value = option.groups()
        if value is None and rest and not re.match("-[a-z-]", rest[0]):
            value = rest.pop(0)
        options[name] = value or ""
    return options


def _resolve(options: Mapping[str, Any], where: str) -> ResolvedTarget:
    _check_triple(options.get("mtriple"), where)
    mattr = _mattr(options.get("mattr", ()), where)
    mcpu = str(options.get("mcpu", "")).strip()
    if not mcpu:
        raise TargetError(where, "no -mcpu", "the name of a CPU: " + ", ".join(supported_mcpus()), _ACTION)
    native = mcpu.lower() == "native"
    if native:
        mcpu, hidden = _native_mcpu(where)
        mattr = hidden + mattr
    else:
        mcpu = _check_mcpu(mcpu, where)
    features = _llvm_features(mcpu, mattr)
    isa = _isa(features)
    if isa is None or features & _UNCHECKED:
        missing = sorted(_AVX2 - features)
        found = f"{mcpu} lacks {', '.join(missing)}" if missing else f"{mcpu} has {', '.join(features & _UNCHECKED)}"
        raise TargetError(where, found, "one of " + ", ".join(supported_mcpus()), "choose one that the machine can run")
    tvm_options: dict[str, Any] = {"kind": "llvm", "mcpu": mcpu}
    if mattr:
        tvm_options["mattr"] = list(mattr)
    if options.get("mtriple"):
        tvm_options["mtriple"] = str(options["mtriple"])
    threads = default_num_threads()
    if "num-cores" in options:
        threads = tvm_options["num-cores"] = _num_cores(options["num-cores"], where)
    cpu = _cpu_model(mcpu, isa, features >= _AMX, threads, native)
    return ResolvedTarget(tvm.target.Target(tvm_options), cpu, mcpu, required_cpu_features(mcpu, mattr))


def _check_triple(triple: Any, where: str) -> None:
    if triple is not None and not re.fullmatch(r"x86_64-(\w+-)?linux(-gnu|-musl)?", str(triple)):
        raise TargetError(where, f"triple {str(triple)!r}", f"x86-64 Linux, like {_TRIPLE}", "leave -mtriple out")


def _mattr(value: Any, where: str) -> tuple[str, ...]:
    """Return a list of ``+feature`` and ``-feature`` that LLVM knows."""
    entries = value.split(",") if isinstance(value, str) else [str(entry) for entry in value]
    entries = [entry.strip() for entry in entries if entry.strip()]
    for entry in entries:
        if entry[0] not in "+-" or entry[1:] not in _known_features():
            close = difflib.get_close_matches(entry.lstrip("+-"), _known_features(), 3)
            expected = "+feature or -feature, as LLVM spells it" + (f" ({', '.join(close)})" if close else "")
            raise TargetError(where, f"-mattr with {entry!r}", expected, "correct the name or leave it out")
    return tuple(entries)


def _num_cores(value: Any, where: str) -> int:
    if not re.fullmatch("[1-9][0-9]{0,3}", str(value)):
        raise TargetError(where, f"-num-cores={value}", "a whole number from 1", "correct it or leave it out")
    return int(value)


def _check_mcpu(mcpu: str, where: str) -> str:
    name = _canonical(mcpu)
    if name not in _known_mcpus():
        close = difflib.get_close_matches(name, supported_mcpus(), 1)
        action = f"did you mean {close[0]!r}?" if close else _ACTION
        raise TargetError(where, f"unknown CPU {mcpu!r}", "one of " + ", ".join(supported_mcpus()), action)
    return name


def _native_mcpu(where: str) -> tuple[str, tuple[str, ...]]:
    """Return LLVM's name of this machine's CPU and ``-feature`` for what a hypervisor hides of it.

    A CPU that this LLVM does not know, or of which too much is hidden, is taken for the best plain one within it; so is
    one that a hypervisor presents as an older model although it shows the features of a newer one.
    """
    system = codegen.llvm_get_system_cpu()
    plain = ("icelake-server", "cascadelake", "skylake-avx512", "alderlake", "haswell")
    richer = ("sapphirerapids",) if _shows_more("sapphirerapids", _AMX, system) else ()
    for name in (*richer, system, *sorted(plain, key=lambda name: len(_hidden(name)))):
        features, hidden = _llvm_features(name), _hidden(name)
        isa = _isa(features)
        if isa and not hidden & isa.features:
            return name, tuple(f"-{feature}" for feature in sorted(hidden | features & _UNCHECKED))
    missing = missing_features(_named(_AVX2))
    found = f"this machine's CPU ({system}) has no {', '.join(missing) or 'AVX2'}"
    raise TargetError(where, found, "a CPU like " + ", ".join(supported_mcpus()), "compile for another machine's CPU")


def _shows_more(mcpu: str, wanted: frozenset[str], system: str) -> bool:
    """Tell whether this machine has features of `mcpu` that the model it claims to be, `system`, has not."""
    return not wanted <= _llvm_features(system) and not (wanted | set(_ISAS[0].features)) & _hidden(mcpu)


def _hidden(mcpu: str) -> set[str]:
    """Return the features of a CPU, in LLVM's spelling, that this machine does not show."""
    features = _llvm_features(mcpu)
    missing = missing_features(_named(features))
    return {feature for feature in features if _CPUINFO_NAMES.get(feature) in missing}


def _named(features: Iterable[str]) -> list[str]:
    return [_CPUINFO_NAMES[feature] for feature in features if feature in _CPUINFO_NAMES]


def _cpu_model(mcpu: str, isa: _Isa, amx: bool, threads: int, native: bool) -> Cpu:
    l1_kb, l2_kb = _CACHES_KB.get(mcpu, (32, 1024))
    l1_bytes = (cache_bytes(1) if native else None) or l1_kb << 10
    l2_bytes = (cache_bytes(2) if native else None) or l2_kb << 10
    words = 1.0 if mcpu.startswith("znver") else 2.0
    return Cpu(mcpu, isa.dot, isa.vector_bits, isa.vector_registers, l1_bytes, l2_bytes, threads, amx, words)


def _isa(features: Iterable[str]) -> _Isa | None:
    """Return the best instruction set within some features, None where there is none."""
    features = set(features)
    return next((isa for isa in _ISAS if isa.features <= features), None)


def _canonical(mcpu: str) -> str:
    """LLVM lists some CPUs under several spellings: icelake_server, skx."""
    name = {"skx": "skylake-avx512"}.get(mcpu.lower(), mcpu.lower())
    return name.replace("_", "-") if name.replace("_", "-") in _known_mcpus() else name


@functools.cache
def _known_mcpus() -> frozenset[str]:
    return frozenset(codegen.llvm_get_cpu_archlist(tvm.target.Target({"kind": "llvm", "mtriple": _TRIPLE})))


@functools.cache
def _known_features() -> frozenset[str]:
    return frozenset().union(*map(_llvm_features, _known_mcpus())) - {"64bit", "64bit-mode"}  # without: LLVM aborts


@functools.cache
def _llvm_features(mcpu: str, mattr: tuple[str, ...] = ()) -> frozenset[str]:
    """Return LLVM's features of a CPU it knows; none for any other."""
    if mcpu not in _known_mcpus():
        return frozenset()
    options = {"kind": "llvm", "mcpu": mcpu, "mtriple": _TRIPLE, **({"mattr": list(mattr)} if mattr else {})}
    return frozenset(map(str, codegen.llvm_get_cpu_features(tvm.target.Target(options))))
