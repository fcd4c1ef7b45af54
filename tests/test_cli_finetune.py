"""The command ``tvm-int8 finetune``."""

from __future__ import annotations

import importlib.util

import numpy as np
import onnx
import pytest

import tvm_int8
from tests.cli_testing import assert_one_line_error, run
from tests.finetuning.trained import classifier, inputs
from tvm_int8.bit_allocation import BitAllocation, LayerBits


@pytest.fixture
def files(tmp_path):
    onnx.save(classifier(), tmp_path / "net.onnx")
    np.savez(tmp_path / "calibration.npz", x=inputs(8))
    np.savez(tmp_path / "train.npz", x=inputs(32, 1))
    np.save(tmp_path / "labels.npy", np.arange(32) % 5)
    layers = (LayerBits("/conv0", 216, 4, 20.0, 20.0, 5.0),)
    BitAllocation(layers, (), "equal", "sensitivity", 20.0, 20.0, 0.0).save(tmp_path / "bits.json")
    arguments = ("--calibration", tmp_path / "calibration.npz", "--data", tmp_path / "train.npz")
    return "finetune", tmp_path / "net.onnx", *arguments, "-o", tmp_path / "tuned.onnx"


def test_trains_and_writes(capsys, files, tmp_path):
    pytest.importorskip("torch", reason="torch is not installed")
    options = (
        "--labels",
        tmp_path / "labels.npy",
        "--bits",
        tmp_path / "bits.json",
        "--checkpoint",
        tmp_path / "state",
    )
    code, out, err = run(capsys, *files, *options, "--epochs", 2, "--learning-rate", 0.002, "--batch-size", 16)
    assert code == 0, err
    assert out.startswith("loss by epoch: ") and f"wrote {tmp_path / 'tuned.onnx'}" in out
    assert (tmp_path / "state").exists()
    module = tvm_int8.compile(str(tmp_path / "tuned.onnx"), num_threads=1)
    assert module.run({"x": inputs(1)})
    assert_one_line_error(run(capsys, *files, *options, "--epochs", 3), "its options differ")


def test_says_what_is_missing(capsys, files, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "torch" else find_spec(name))
    assert_one_line_error(run(capsys, *files), "pip install tvm_int8[finetune]")
