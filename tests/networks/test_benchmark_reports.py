"""The comparison's table, chart and floor, from made-up results; the peak of this CPU."""

from __future__ import annotations

import json

import pytest

from benchmarks import chart, peak, report


def row(name: str, median_ms: float) -> dict:
    return {"name": name, "version": "1", "median_ms": median_ms, "min_ms": median_ms, "p90_ms": median_ms, "runs": 3,
            "sqnr_db": 20.0, "relative_error": 1e-6, "correct": True}  # fmt: skip


def result(network: str, ours: float, ort: float, openvino: float, threads: int = 1, **floor) -> dict:
    runners = {
        "tvm_int8": row("tvm_int8 INT8", ours),
        "ort_int8": row("ORT INT8", ort),
        "openvino_int8": row("OpenVINO INT8", openvino),
    }
    ratios = report.ratios(runners)
    return {"network": network, "threads": threads, "runners": runners, "absent": {}, "ratios": ratios, "floor": floor}


def test_ratios_are_taken_to_the_better_peer():
    found = report.ratios(result("net", 2.0, 8.0, 3.0)["runners"])
    assert found["int8_vs_better_int8"] == 1.5
    assert found["int8_vs_ort_int8"] == 4.0


def test_geometric_mean():
    results = [result("a", 1.0, 2.0, 9.0), result("b", 1.0, 8.0, 9.0)]
    assert report.geometric_means(results)["int8_vs_better_int8"] == (4.0, 2)


def test_floor_uses_the_highest_peak_measured_with_as_many_threads():
    results = [
        result("a", 4.0, 5.0, 6.0, macs=10**9, peak_gmacs_per_s=400.0),
        result("b", 4.0, 5.0, 6.0, macs=10**9, peak_gmacs_per_s=500.0),
        result("a", 4.0, 5.0, 6.0, threads=2, macs=10**9, peak_gmacs_per_s=1000.0),
    ]
    floors = [entry["floor"] for entry in report.with_floors(results)]
    assert [floor["floor_ms"] for floor in floors] == [2.0, 2.0, 1.0]
    assert [floor["share_of_peak"] for floor in floors] == [0.5, 0.5, 0.25]


def test_table_chart_and_json_are_written(tmp_path):
    pytest.importorskip("matplotlib")
    results = [result("squeezenet", 1.0, 2.0, 1.5, threads, macs=10**8, peak_gmacs_per_s=500.0) for threads in (1, 2)]
    report.write(results, tmp_path / "out")
    assert json.loads((tmp_path / "out.json").read_text())["results"][0]["network"] == "squeezenet"
    table = (tmp_path / "out.md").read_text()
    assert "### 1 thread," in table and "### 2 threads," in table and "1.50x" in table
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "out.md", "out.png"]


def test_nothing_to_compare_with_is_no_chart():
    alone = result("net", 1.0, 2.0, 3.0)
    alone["runners"] = {"tvm_int8": alone["runners"]["tvm_int8"]}
    with pytest.raises(chart.NoChartError, match="no network"):
        chart.draw([alone], "")


@pytest.mark.isa("avx512vnni")
def test_peak_is_one_a_cpu_can_have():
    assert peak.unavailable() is None
    most = 10000 if peak.instruction() == "tdpbusd" else 2000
    assert 20 < peak.peak_gmacs_per_s(1) < most
