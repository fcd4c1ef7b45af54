"""The arithmetic of the tuning benchmarks, from made-up records."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from benchmarks import ship_logs, tuning_curves
from tvm_int8.tuning.log_file import append, read_log
from tvm_int8.tuning.record import Record
from tvm_int8.tuning.workload import Workload

LARGE = Workload("conv2d", (1, 64, 9, 9), (1, 64, 9, 9), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1, 16,
                 ("uint8", "int8", "uint8"), 1)  # fmt: skip
SMALL = Workload("dense", (1, 64, 1, 1), (1, 16, 1, 1), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1, 16,
                 ("uint8", "int8", "float32"), 1)  # fmt: skip
NETWORK = Counter({LARGE: 3, SMALL: 2})


def trial(workload, ratio, unroll, **fields):
    heuristic_us = 10.0 if workload == LARGE else 5.0
    knobs = {"pixels": "row", "ow_tile": 1, "oc_tile": 1, "order": "channels", "unroll": unroll, "prefetch": "none"}
    values = {"cpu": "a CPU", "tvm": "0", "date": "2026-11-28", **fields}
    return Record(workload, "conv2d", 1, knobs, "cascadelake", ratio * heuristic_us, heuristic_us, **values)


TRIALS = [trial(LARGE, 1.0, 4), trial(SMALL, 1.0, 4), trial(LARGE, 1.2, 2), trial(LARGE, 0.8, 1), trial(SMALL, 0.9, 1)]


def test_a_network_is_as_fast_as_its_best_records():
    """40 us at first: 3 x 10 + 2 x 5."""
    curve = tuning_curves.network_curve(TRIALS, NETWORK)
    np.testing.assert_allclose(curve * 40, [40, 40, 40, 34, 33])


def test_without_the_heuristic_only_what_was_searched_counts():
    curve = tuning_curves.network_curve(TRIALS, NETWORK, start=1.3)
    np.testing.assert_allclose(curve * 40, [52, 52, 49, 37, 33])


def test_a_workload_is_as_fast_as_its_best_record():
    np.testing.assert_allclose(tuning_curves.workload_curve(TRIALS, LARGE), [1, 1, 0.8])


@pytest.mark.parametrize(("quality", "trials"), [(1.0, 1), (0.85, 4), (0.825, 5), (0.5, None)])
def test_trials_needed(quality, trials):
    assert tuning_curves.trials_needed(tuning_curves.network_curve(TRIALS, NETWORK), quality) == trials


def test_what_is_shipped_is_the_last_word_on_each_workload(tmp_path, monkeypatch):
    monkeypatch.setattr(ship_logs, "SHIPPED", tmp_path / "logs")
    work = tmp_path / "work.jsonl"
    final = [trial(LARGE, 0.8, 1, final=True, extra={"open": True}), trial(SMALL, 1.0, 4, final=True)]
    append(work, [*TRIALS, *final])
    path = ship_logs.ship("cascadelake", 1, work, ["a network"])
    assert path == tmp_path / "logs" / "cascadelake" / "1_thread.jsonl"
    log = read_log(path)
    assert {(record.workload, record.ratio) for record in log.records} == {(LARGE, 0.8), (SMALL, 1.0)}
    assert all(record.final and not record.extra for record in log.records)
    assert "Measured on a CPU." in log.headers[0]
    assert "a network" in log.headers[0]
