"""The comparison's figures as Markdown and JSON."""

from __future__ import annotations

import datetime
import json
import os
import platform
from pathlib import Path

RATIOS = {
    "int8_vs_ort_int8": ("tvm_int8", "ort_int8"),
    "int8_vs_ort_fp32": ("tvm_int8", "ort_fp32"),
    "int8_vs_openvino_int8": ("tvm_int8", "openvino_int8"),
    "fp32_vs_ort_fp32": ("tvm_fp32", "ort_fp32"),
}
"""Name of a ratio to (this project's runner, the peer); the ratio says how many times faster this project is."""

_TITLES = {
    "tvm_int8": "tvm_int8 INT8",
    "tvm_fp32": "tvm_int8 FP32",
    "ort_fp32": "ORT FP32",
    "ort_int8": "ORT INT8",
    "openvino_fp32": "OpenVINO FP32",
    "openvino_int8": "OpenVINO INT8",
}


def ratios(rows: dict[str, dict]) -> dict[str, float]:
    """Return the peer's median over ours, for every pair that was timed: above 1 this project is faster."""
    return {
        name: round(rows[peer]["median_ms"] / rows[ours]["median_ms"], 3)
        for name, (ours, peer) in RATIOS.items()
        if ours in rows and peer in rows
    }


def failures(results: list[dict]) -> list[str]:
    """Return a sentence per wrong FP32 output and per network tvm_int8 could not run."""
    found = []
    for result in results:
        where = f"{result['network']}, {result['threads']} thread(s)"
        for row in result["runners"].values():
            if row.get("correct") is False:
                found.append(f"{where}: {row['name']} is off by {row['relative_error']:.1e} of the largest output")
        for key in ("tvm_int8", "tvm_fp32"):
            if key in result["absent"]:
                found.append(f"{where}: {_TITLES[key]} did not run: {result['absent'][key]}")
    return found


def markdown(results: list[dict]) -> str:
    """Return one table per thread count, and below them what was missing or wrong."""
    parts = []
    for threads in sorted({result["threads"] for result in results}):
        chosen = [result for result in results if result["threads"] == threads]
        parts.append(f"### {threads} thread{'s' if threads > 1 else ''}, batch 1, median ms (minimum)\n")
        parts.append(_table(chosen))
    parts.append(f"Measured on {_machine()}, {datetime.date.today().isoformat()}, {_versions(results)}.")
    missing = {(key, reason) for result in results for key, reason in result["absent"].items()}
    parts += [f"- {_TITLES[key]} is missing: {reason}" for key, reason in sorted(missing)]
    parts += [f"- **Failed:** {sentence}" for sentence in failures(results)]
    return "\n".join(parts)


def _table(results: list[dict]) -> str:
    keys = [key for key in _TITLES if any(key in result["runners"] for result in results)]
    pairs = [name for name in RATIOS if any(name in result["ratios"] for result in results)]
    quantized = [key for key in keys if key.endswith("int8")]
    header = ["network", *(_TITLES[key] for key in keys), *(_ratio_title(name) for name in pairs)]
    header += [f"{_TITLES[key]} SQNR dB" for key in quantized]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for result in results:
        rows = result["runners"]
        cells = [f"{rows[key]['median_ms']:.2f} ({rows[key]['min_ms']:.2f})" if key in rows else "-" for key in keys]
        cells += [f"{result['ratios'][name]:.2f}x" if name in result["ratios"] else "-" for name in pairs]
        cells += [_decibel(rows.get(key, {}).get("sqnr_db")) for key in quantized]
        lines.append("| " + " | ".join([result["network"], *cells]) + " |")
    return "\n".join(lines) + "\n"


def _ratio_title(name: str) -> str:
    ours, peer = RATIOS[name]
    return f"{_TITLES[ours].split()[-1]} vs {_TITLES[peer]}"


def _decibel(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _machine() -> str:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model} ({os.cpu_count()} logical CPUs, {platform.system()})"


def _versions(results: list[dict]) -> str:
    rows = [row for result in results for row in result["runners"].values()]
    found = {row["name"].split()[0]: row["version"] for row in rows if row["version"]}
    return ", ".join(f"{name} {version}" for name, version in found.items())


def write(results: list[dict], stem: Path) -> None:
    """Write ``<stem>.json`` and ``<stem>.md``."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    document = {"machine": _machine(), "date": datetime.date.today().isoformat(), "results": results}
    Path(f"{stem}.json").write_text(json.dumps(document, indent=2) + "\n")
    Path(f"{stem}.md").write_text(markdown(results) + "\n")
