"""The command `tvm-int8 quantize`."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import tvm_int8
from tests.cli_testing import assert_one_line_error, run
from tests.frontend.running import run_onnx
from tests.numpy_calibration import NumpyNetwork
from tests.small_networks import NETWORKS, draw
from tvm_int8.cli.quantize import RUNTIMES
from tvm_int8.quantization import ranges
from tvm_int8.quantization.sqnr import sqnr_db


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A model and calibration data on disk; ranges are observed in NumPy."""
    monkeypatch.setattr(ranges, "LazyNetwork", NumpyNetwork)
    model = NETWORKS["residual"]()
    onnx.save(model, tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", x=np.concatenate([batch["x"] for batch in draw(model, 4, seed=0)]))
    return tmp_path


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_model_for_a_runtime(capsys, files, runtime):
    options = ["--calibration", files / "data.npz", "--runtime", runtime, "--method", "minmax"]
    code, out, err = run(capsys, "quantize", files / "model.onnx", "-o", files / "int8.onnx", *options)
    assert (code, err) == (0, "")
    assert out.startswith(f"wrote {files / 'int8.onnx'}") and f"for {runtime})" in out
    model, found = onnx.load(files / "model.onnx"), onnx.load(files / "int8.onnx")
    (inputs,) = draw(model, 1, seed=1)
    assert sqnr_db(run_onnx(model, inputs)[0], run_onnx(found, inputs)[0]) > 20


def test_what_is_passed_on(capsys, files, monkeypatch):
    calls = []

    class Quantized:
        def to_onnx(self, path):
            open(path, "wb").close()

    def quantize(*arguments, **options):
        calls.append((*arguments, options))
        return Quantized()

    monkeypatch.setitem(vars(tvm_int8), "quantize", quantize)
    output = files / "int8.onnx"
    run(capsys, "quantize", "m.onnx", "-o", output)
    run(
        capsys, "quantize", "m.onnx", "-o", output, "--calibration", "t.json", "--preset", "fast", "--runtime",
        "openvino", "--input-shape", "x=1,3",
    )  # fmt: skip
    config = tvm_int8.QuantizationConfig(per_channel_activations=False, plain_convolutions=True)
    assert calls[0] == ("m.onnx", None, config, {})
    preset = tvm_int8.QuantizationConfig.preset("fast", per_channel_activations=False)
    assert calls[1] == ("m.onnx", "t.json", preset, {"input_shapes": {"x": (1, 3)}})


def test_a_table_for_a_runtime(capsys, files):
    """What calibrate observes for a runtime serves quantize; another table lacks tensors."""
    model, data, table, output = (files / name for name in ("model.onnx", "data.npz", "table.json", "int8.onnx"))
    assert run(capsys, "calibrate", model, data, "-o", table, "--runtime", "onnxruntime")[0] == 0
    assert run(capsys, "quantize", model, "-o", output, "--calibration", table)[0] == 0
    assert run(capsys, "calibrate", model, data, "-o", table)[0] == 0
    assert_one_line_error(run(capsys, "quantize", model, "-o", output, "--calibration", table), "no range for")


def test_errors_are_one_line(capsys, files):
    model, options = files / "model.onnx", ["--calibration", files / "data.npz"]
    output = files / "none" / "int8.onnx"
    assert_one_line_error(run(capsys, "quantize", model, "-o", output, *options), "int8.onnx", "cannot be written")
    assert_one_line_error(run(capsys, "quantize", files / "none.onnx", "-o", files / "int8.onnx"), "no such file")
