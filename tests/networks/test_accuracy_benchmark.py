"""The accuracy benchmark: judging, its table, file and picture with made-up runners; a small network for real."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from benchmarks import accuracy, accuracy_chart, judge
from benchmarks.accuracy_table import TITLES, Comparison, Row, load, save
from benchmarks.chart import NoChartError
from benchmarks.peers import Absent, Runner
from tests.small_networks import Network, draw

pytest.importorskip("onnxruntime")

IMAGES = [np.full((1, 3, 8, 8), value, np.float32) for value in (0.0, 1.0, 2.0, 3.0)]


def logits(*classes: int) -> list[list[np.ndarray]]:
    """A batch of one image per class, which has a logit of 1."""
    return [[np.eye(3, dtype=np.float32)[[c]]] for c in classes]


def test_judge_counts_decisions_of_all_batches():
    found = judge.judge(logits(0, 1, 2, 2), logits(0, 1, 2, 1), labels=np.array([0, 0, 2, 1, 9]))
    assert found.equal_decisions == 0.75
    assert found.accuracy == 0.75
    assert found.sqnr_db == pytest.approx(10 * np.log10(4 / 2))


def test_sqnr_is_taken_over_all_outputs():
    reference = [[np.array([[3.0]]), np.array([[4.0]])]]
    actual = [[np.array([[3.0]]), np.array([[4.5]])]]
    assert judge.judge(reference, actual, decide=None) == judge.Result(20.0, None, None)


def test_decisions_of_another_kind():
    pixels = [[np.array([[[[1.0, 0.0]], [[0.0, 1.0]]]])]]
    actual = [[np.array([[[[1.0, 3.0]], [[0.0, 1.0]]]])]]
    found = judge.judge(pixels, actual, np.array([0, 1]), decide=lambda outputs: outputs[0].argmax(1).ravel())
    assert (found.equal_decisions, found.accuracy) == (0.5, 0.5)


def test_too_few_labels_are_refused():
    with pytest.raises(ValueError, match="found 1, expected one for each of 2 decisions"):
        judge.judge(logits(0, 1), logits(0, 1), labels=np.array([0]))


@pytest.fixture
def made_up(monkeypatch):
    """FP32 decides 0 1 2 2; "default" is wrong once more, "fast" never; "ort" is missing and "nncf" fails."""

    def runner(name: str, classes: tuple[int, ...], **options) -> Runner:
        kind = accuracy.OurRunner if options else Runner
        return kind(name, lambda x: logits(classes[int(x.flat[0])])[0], quantize_s=1.5, **options)

    def failing(*_):
        raise RuntimeError("no such operator\nand more")

    monkeypatch.setattr(accuracy.peers, "ort_fp32", lambda *_: runner("FP32", (0, 1, 2, 2)))
    makers = {
        "fast": lambda *_: runner("fast", (0, 1, 2, 2), float_layers=0),
        "default": lambda *_: runner("default", (0, 1, 2, 1), float_layers=2),
        "ort": lambda *_: Absent("ORT INT8", "not installed"),
        "nncf": failing,
    }
    monkeypatch.setattr(accuracy, "MAKERS", makers)
    return list(makers)


def test_rows_and_their_points_lost(made_up):
    found = accuracy.compare(
        onnx.ModelProto(), IMAGES, IMAGES, labels=np.array([0, 1, 2, 2]), rows=made_up, network="net"
    )
    assert [row.name for row in found.rows] == ["fp32", *made_up]
    assert (found["fp32"].score, found["fp32"].points_lost, found["fp32"].quantize_s) == (1.0, None, None)
    assert (found["fast"].points_lost, found["default"].points_lost) == (0, 25)
    assert (found["fast"].latency, found["default"].float_layers) == (1.0, 2)
    assert found["default"].latency > 0
    assert found["ort"] == Row("ort", absent="not installed")
    assert found["nncf"] == Row("nncf", absent="RuntimeError: no such operator")


def test_a_score_of_ones_own(made_up):
    def count_of_class_2(infer) -> float:
        return float(np.mean([infer(x)[0].argmax() == 2 for x in IMAGES]))

    found = accuracy.compare(onnx.ModelProto(), [], IMAGES, score=count_of_class_2, rows=["default"], decide=None)
    assert (found["fp32"].score, found["default"].score, found["default"].points_lost) == (0.5, 0.25, 25)
    assert found["default"].equal_decisions is None
    assert found["default"].latency is None  # there is nothing that it could be relative to


def test_without_inputs_the_outputs_are_those_that_the_score_looks_at(made_up):
    def share_of_class_1(infer) -> float:
        return float(np.mean([infer(x)[0].argmax() == 1 for x in IMAGES[2:]]))

    found = accuracy.compare(onnx.ModelProto(), IMAGES, score=share_of_class_1, rows=["fast", "default"])
    assert [row.points_lost for row in found.rows] == [None, 0, -50]
    assert (found["fast"].equal_decisions, found["default"].equal_decisions) == (1.0, 0.5)


def test_one_metric_and_something_to_judge_on(made_up):
    with pytest.raises(ValueError, match="both labels and a score"):
        accuracy.compare(onnx.ModelProto(), [], IMAGES, labels=np.zeros(4), score=lambda infer: 1.0)
    with pytest.raises(ValueError, match="neither inputs nor a score"):
        accuracy.compare(onnx.ModelProto(), [], labels=np.zeros(4))


COMPARISON = Comparison(
    "net",
    "mAP",
    (
        Row("fp32", score=0.5, equal_decisions=1.0, sqnr_db=float("inf")),
        Row("default", 0.495, 0.5, 0.9875, 31.26, 4.04, 1, 1.034),
        Row("ort", absent="not installed"),
    ),
)


def test_the_table():
    assert str(COMPARISON).splitlines() == [
        "| net | mAP | points lost | decisions as in FP32 | SQNR dB | s to quantise | layers in FP32 | latency |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| FP32 (ONNX Runtime) | 50.0% |  | 100.00% | inf |  |  |  |",
        "| tvm_int8 | 49.5% | 0.50 | 98.75% | 31.3 | 4.0 | 1 | 1.03x |",
        "| ONNX Runtime |  |  |  |  |  |  |  |",
        "ONNX Runtime: not installed",
    ]


def test_columns_without_a_value_are_left_out():
    table = str(Comparison("net", "top-1", (Row("default", sqnr_db=30.0),)))
    assert table.splitlines()[0] == "| net | SQNR dB |"


def test_the_file_keeps_one_comparison_per_network(tmp_path):
    path = tmp_path / "all.json"
    other = Comparison("other", "top-1", (Row("default", sqnr_db=30.0),))
    assert save(COMPARISON, path) == [COMPARISON]
    save(other, path)
    newer = Comparison("net", "mAP", COMPARISON.rows[:2])
    assert save(newer, path) == load(path) == [newer, other]


def test_the_picture():
    pytest.importorskip("matplotlib")
    without_metric = Comparison("other", "top-1", (COMPARISON["fp32"], Row("nncf", sqnr_db=20.0)))
    assert accuracy_chart.draw([COMPARISON, without_metric]).startswith(b"\x89PNG")
    with pytest.raises(NoChartError, match="no network"):
        accuracy_chart.draw([Comparison("net", "top-1", (COMPARISON["fp32"],))])


def test_every_quantiser_has_a_title_and_a_mark():
    assert set(TITLES) - {"fp32"} == set(accuracy.MAKERS) == set(accuracy_chart._MARKS)


def test_the_command(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    net = Network(x=(1, 3, 8, 8))
    y = net.add("Flatten", net.add("GlobalAveragePool", net.relu(net.norm(net.conv("x", 8)))))
    model = net.finish(net.add("Softmax", net.dense(y, 8, 4)))
    paths = [str(tmp_path / name) for name in ("net.onnx", "calibration.npz", "test.npy", "labels.npy")]
    onnx.save(model, paths[0])
    inputs = np.concatenate([batch["x"] for batch in draw(model, 12, seed=0)])
    np.savez(paths[1], x=inputs[:8])
    np.save(paths[2], inputs[8:])
    np.save(paths[3], np.arange(4))
    given = ["--calibration", paths[1], "--test", paths[2], "--labels", paths[3], "--rows", "fast", "default", "ort"]
    written = ["--json", str(tmp_path / "all.json"), "--plot", str(tmp_path / "all.png"), "--name", "small"]
    assert accuracy.main([paths[0], *given, *written]) == 0
    assert capsys.readouterr().out.startswith("| small | top-1 |")
    (found,) = load(tmp_path / "all.json")
    assert [row.name for row in found.rows] == ["fp32", "fast", "default", "ort"]
    assert found["fp32"].sqnr_db == float("inf")
    assert all(20 < row.sqnr_db < 80 and row.quantize_s > 0 and not row.absent for row in found.rows[1:])
    assert found["fast"].latency == 1.0 and found["default"].latency > 0
    assert (tmp_path / "all.png").read_bytes().startswith(b"\x89PNG")
