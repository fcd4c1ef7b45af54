"""The command ``tvm-int8 allocate``, and what ``compile`` makes of its file."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import tvm_int8
from tests.cli_testing import assert_one_line_error, run
from tests.small_networks import Network, draw


@pytest.fixture
def files(tmp_path):
    net = Network(x=(1, 3, 8, 8))
    y = net.relu(net.conv(net.relu(net.conv("x", 16)), 16))
    model = net.finish(net.dense(net.add("Flatten", net.add("GlobalAveragePool", y)), 16, 5))
    onnx.save(model, tmp_path / "net.onnx")
    np.savez(tmp_path / "calibration.npz", x=np.concatenate([batch["x"] for batch in draw(model, 8, 0)]))
    return tmp_path / "net.onnx", "--calibration", tmp_path / "calibration.npz"


def test_allocates_and_compiles(capsys, files, tmp_path):
    bits = tmp_path / "bits.json"
    code, out, err = run(capsys, "allocate", *files, "-o", bits, "--average-bits", 4, "--per-channel")
    assert code == 0, err
    assert "bits on average" in out
    found = tvm_int8.BitAllocation.load(bits)
    assert found.average_bits <= 4
    code, out, err = run(capsys, "compile", *files, "--bits", bits, "-o", tmp_path / "net.so")
    assert code == 0, err
    stored = [row.weight_bits for row in tvm_int8.load(tmp_path / "net.so").report if row.weight_bits is not None]
    assert stored and max(stored) < 8


def test_says_what_is_wrong(capsys, files, tmp_path):
    arguments = ("allocate", *files, "-o", tmp_path / "bits.json", "--average-bits", 4, "--allocation")
    assert_one_line_error(run(capsys, *arguments, "best"), "'closed_form'")
    assert_one_line_error(run(capsys, *arguments, "equal", "--per-channel"), "method='equal'")
