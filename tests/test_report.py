import json
import math

import pytest

from tvm_int8.metadata import KernelRow, LayerRow, Metadata, TensorInfo
from tvm_int8.report import Report, is_multiplying, table

ROWS = [
    LayerRow("features/conv1", "conv2d", "int8", "conv2d", "tuned", 41.26),
    LayerRow("features/conv2", "depthwise_conv2d", "int8", "depthwise", "heuristic", math.inf),
    LayerRow("features/conv3", "nn.conv2d_transpose", "float32", "conv2d", reason="excluded by the user"),
    LayerRow("classifier", "matmul", "int8", "dense"),
    LayerRow("prob", "nn.softmax", "float32", "softmax"),
]


def test_summary_counts_what_multiplies():
    assert Report(ROWS).summary == "3/4 convolution and dense layers in INT8; tuned 1/4"
    assert Report([]).summary == "0/0 convolution and dense layers in INT8; tuned 0/0"


@pytest.mark.parametrize(
    ("op", "expected"),
    [("nn.conv2d", True), ("relax.matmul", True), ("conv2d_transpose", True), ("dense", True), ("max_pool2d", False)],
)
def test_is_multiplying(op, expected):
    assert is_multiplying(op) is expected


def test_is_a_sequence_of_rows():
    report = Report(iter(ROWS))
    assert list(report) == ROWS
    assert (len(report), report[-1].layer, report.summary in repr(report)) == (5, "prob", True)


def test_table_has_a_line_per_layer_and_the_reasons():
    lines = str(Report(ROWS)).splitlines()
    assert lines[0].split() == ["layer", "operator", "precision", "kernel", "knobs", "SQNR", "dB"]
    assert lines[2].split() == ["features/conv1", "conv2d", "int8", "conv2d", "tuned", "41.3"]
    assert lines[-3:] == [
        "in FP32:",
        "  excluded by the user: features/conv3",
        "  no INT8 kernel for this operator: prob",
    ]
    assert "in FP32" not in str(Report(ROWS[:2]))


def test_many_layers_for_one_reason_are_counted():
    report = Report([LayerRow(f"layer{i}", "softmax", "float32", reason="because") for i in range(7)])
    assert str(report).endswith("  because: layer0, layer1, layer2, layer3 and 3 more")


def test_to_dict_is_strict_json():
    document = json.loads(json.dumps(Report(ROWS).to_dict(), allow_nan=False))
    assert document["summary"] == Report(ROWS).summary
    assert [row["sqnr_db"] for row in document["layers"]] == [41.26, None, None, None, None]


def test_table_aligns_and_shortens():
    text = table(("name", "n"), [("a" * 60, "1"), ("b", "100")], right_aligned={1}).splitlines()
    assert text[2] == "a" * 23 + ".." + "a" * 23 + "    1"
    assert text[3] == "b" + " " * 49 + "100"


def test_metadata_json_round_trip():
    metadata = Metadata(
        inputs=[TensorInfo("data/x:0", (1, 3, 8, 8), "float32")],
        outputs=[TensorInfo("y", (), "int64")],
        target='{"kind": "llvm"}',
        mcpu="znver4",
        cpu_features=["avx2"],
        num_threads=2,
        layers=ROWS,
        kernels=[KernelRow("fused", "features/conv1", "conv2d", 10**12, 7)],
        quantization={"input": {"scale": 0.5, "zero_point": 3}, "ranges": "calibration"},
    )
    assert Metadata.from_json(metadata.to_json()) == metadata
    assert Metadata.from_json(metadata.to_json().encode()).inputs[0].shape == (1, 3, 8, 8)
    assert set(metadata.versions) == {"tvm", "tvm_ffi", "tvm_int8"}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"inputs": 3}', '{"inputs": [{}]}', "null"])
def test_other_json_is_not_metadata(text):
    with pytest.raises((ValueError, TypeError, KeyError)):
        Metadata.from_json(text)
