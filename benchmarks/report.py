"""The comparison's figures as Markdown, JSON and a chart."""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
from pathlib import Path

from benchmarks import chart
from benchmarks.peers import INT8_PEERS

RATIOS = {
    "int8_vs_ort_int8": ("tvm_int8", ("ort_int8",)),
    "int8_vs_ort_fp32": ("tvm_int8", ("ort_fp32",)),
    "int8_vs_openvino_int8": ("tvm_int8", ("openvino_int8",)),
    "fp32_vs_ort_fp32": ("tvm_fp32", ("ort_fp32",)),
    "int8_vs_better_int8": ("tvm_int8", INT8_PEERS),
}
"""Name of a ratio to (this project's runner, the peers whose fastest counts); it says how many times faster this
project is."""

_TITLES = {
    "tvm_int8": "tvm_int8 INT8",
    "tvm_fp32": "tvm_int8 FP32",
    "ort_fp32": "ORT FP32",
    "ort_int8": "ORT INT8",
    "openvino_fp32": "OpenVINO FP32",
    "openvino_int8": "OpenVINO INT8",
}


def ratios(rows: dict[str, dict]) -> dict[str, float]:
    """Return the fastest peer's median over ours, where both were timed: above 1 this project is faster."""
    return {
        name: round(min(rows[peer]["median_ms"] for peer in peers if peer in rows) / rows[ours]["median_ms"], 3)
        for name, (ours, peers) in RATIOS.items()
        if ours in rows and any(peer in rows for peer in peers)
    }


def geometric_means(results: list[dict]) -> dict[str, tuple[float, int]]:
    """Return for every ratio its geometric mean over the results that have it, and how many those are."""
    found = {}
    for name in RATIOS:
        values = [result["ratios"][name] for result in results if name in result["ratios"]]
        if values:
            found[name] = (round(math.exp(sum(map(math.log, values)) / len(values)), 3), len(values))
    return found


def with_floors(results: list[dict]) -> list[dict]:
    """Return the results with ``floor_ms`` and ``share_of_peak`` (floor / tvm_int8 INT8's median) in their ``floor``.

    The floor is what the multiply-adds of direct convolutions take at the CPU's peak. Of all measurements of the peak
    with a number of threads the highest counts: what else the machine does can only make it look lower.
    """
    best: dict[int, float] = {}
    for result in results:
        measured = result.get("floor", {}).get("peak_gmacs_per_s", 0.0)
        best[result["threads"]] = max(measured, best.get(result["threads"], 0.0))
    complete = []
    for result in results:
        floor = dict(result.get("floor", {}))
        if "macs" in floor:
            peak = best[result["threads"]]
            floor_ms = floor["macs"] / peak / 1e6
            share = floor_ms / result["runners"]["tvm_int8"]["median_ms"]
            floor.update(peak_gmacs_per_s=peak, floor_ms=round(floor_ms, 4), share_of_peak=round(share, 4))
        complete.append({**result, "floor": floor})
    return complete


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
    for threads, chosen in _by_threads(with_floors(results)).items():
        parts.append(f"### {threads} thread{'s' if threads > 1 else ''}, median ms (minimum)\n")
        parts.append(_table(chosen))
        parts += [f"{sentence}\n" for sentence in _floor_sentences(chosen)]
    parts.append(f"Measured on {_conditions(results)}.")
    missing = {(key, reason) for result in results for key, reason in result["absent"].items()}
    parts += [f"- {_TITLES[key]} is missing: {reason}" for key, reason in sorted(missing)]
    parts += [f"- **Failed:** {sentence}" for sentence in failures(results)]
    return "\n".join(parts)


def _by_threads(results: list[dict]) -> dict[int, list[dict]]:
    counts = sorted({result["threads"] for result in results})
    return {threads: [result for result in results if result["threads"] == threads] for threads in counts}


def _table(results: list[dict]) -> str:
    keys = [key for key in _TITLES if any(key in result["runners"] for result in results)]
    pairs = [name for name in RATIOS if any(name in result["ratios"] for result in results)]
    quantized = [key for key in keys if key.endswith("int8")]
    header = ["network", *(_TITLES[key] for key in keys), *(_ratio_title(name) for name in pairs)]
    header += [f"{_TITLES[key]} SQNR dB" for key in quantized]
    floors = any("floor_ms" in result["floor"] for result in results)
    header += ["floor ms", "share of peak"] if floors else []
    lines = [_line(header), "|---" * len(header) + "|"]
    for result in results:
        rows = result["runners"]
        cells = [f"{rows[key]['median_ms']:.2f} ({rows[key]['min_ms']:.2f})" if key in rows else "-" for key in keys]
        cells += [f"{result['ratios'][name]:.2f}x" if name in result["ratios"] else "-" for name in pairs]
        cells += [_decibel(rows.get(key, {}).get("sqnr_db")) for key in quantized]
        cells += _floor_cells(result["floor"]) if floors else []
        lines.append(_line([result["network"], *cells]))
    if len(results) > 1 and pairs:
        after = [""] * (len(header) - 1 - len(keys) - len(pairs))
        lines.append(_line(["**geometric mean**", *[""] * len(keys), *_mean_cells(results, pairs), *after]))
    return "\n".join(lines) + "\n"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _mean_cells(results: list[dict], pairs: list[str]) -> list[str]:
    """Return the geometric means; one that leaves out networks says so."""
    means = geometric_means(results)
    incomplete = {name: f" ({count} of {len(results)})" for name, (_, count) in means.items() if count < len(results)}
    return [f"**{means[name][0]:.2f}x**{incomplete.get(name, '')}" for name in pairs]


def _floor_cells(floor: dict) -> list[str]:
    return [f"{floor['floor_ms']:.2f}", f"{floor['share_of_peak']:.0%}"] if "floor_ms" in floor else ["-", "-"]


def _floor_sentences(results: list[dict]) -> list[str]:
    """Say what the floor is, or why there is none."""
    floors = [result["floor"] for result in results if "floor_ms" in result["floor"]]
    peaks = {(floor["peak_gmacs_per_s"], floor.get("instruction", "vpdpbusd")) for floor in floors}
    found = [
        f"Floor: the multiply-adds of direct convolutions at {peak:.0f} GMAC/s, the measured peak of u8 x s8 "
        f"`{instruction}` on as many threads; share of peak: floor / tvm_int8 INT8."
        for peak, instruction in peaks
    ]
    reasons = sorted({result["floor"]["reason"] for result in results if "reason" in result["floor"]})
    return found + [f"No floor: {reason}." for reason in reasons]


def _ratio_title(name: str) -> str:
    ours, rivals = RATIOS[name]
    return f"{_TITLES[ours].split()[-1]} vs {_TITLES[rivals[0]] if len(rivals) == 1 else 'better INT8'}"


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
    found = {row["name"].split()[0]: row["version"].split("-")[0] for row in rows if row["version"]}
    return ", ".join(f"{name} {version}" for name, version in found.items())


def _conditions(results: list[dict]) -> str:
    return f"{_machine()}, {datetime.date.today().isoformat()}, {_versions(results)}"


def write(results: list[dict], stem: Path) -> str | None:
    """Write ``<stem>.json``, ``<stem>.md`` and ``<stem>.png``, each as a whole or not at all.

    Returns
    -------
    str or None
        Why there is no chart, when there is none; an older one of the same name is removed then.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    means = {
        threads: {name: mean for name, (mean, _) in geometric_means(chosen).items()}
        for threads, chosen in _by_threads(results).items()
    }
    document = {
        "machine": _machine(),
        "date": datetime.date.today().isoformat(),
        "geometric_means": means,
        "results": with_floors(results),
    }
    _replace(Path(f"{stem}.json"), (json.dumps(document, indent=2) + "\n").encode())
    _replace(Path(f"{stem}.md"), (markdown(results) + "\n").encode())
    picture = Path(f"{stem}.png")
    try:
        _replace(picture, chart.draw(results, _conditions(results)))
    except chart.NoChartError as error:
        picture.unlink(missing_ok=True)
        return f"{picture} was not drawn: {error}"
    return None


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    partial.replace(path)
