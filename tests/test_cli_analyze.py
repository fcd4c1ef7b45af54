"""The command ``tvm-int8 analyze``."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

import tvm_int8
from tests.analysis.analyses import NAME, images, layer, made_up, network
from tests.cli_testing import assert_one_line_error, run


@pytest.fixture
def files(tmp_path):
    onnx.save(network(), tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", x=images(4))
    return "analyze", tmp_path / "net.onnx", "--calibration", tmp_path / "data.npz", "--inputs", 2


def test_json_and_page(capsys, files, tmp_path):
    pytest.importorskip("matplotlib")
    page = tmp_path / "report.html"
    code, out, err = run(capsys, *files, "--preset", "fast", "--json", "--html", page)
    assert code == 0, err
    told = json.loads(out)
    assert told["layers"][0]["layer"] == NAME
    assert told["inputs"] == 2
    assert {layer["activation"]["method"] for layer in told["layers"]} == {"minmax"}
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert f"wrote {page}" in err


def test_table_and_options(capsys, files, monkeypatch):
    asked = []

    def analyze(*arguments, **options):
        asked.append((*arguments, options))
        return made_up([layer(0), layer(1)])

    monkeypatch.setattr(tvm_int8, "analyze", analyze)
    byte_options = ("--input-dtype", "uint8", "--input-mean", "1,2,3", "--input-std", "4,5,6")
    code, out, err = run(capsys, *files, "--preset", "best", "--method", "entropy", "--target", "znver4", *byte_options)
    assert (code, err) == (0, "")
    assert out == f"{made_up([layer(0), layer(1)])}\n"
    ((model, data, config, options),) = asked
    assert (model, data) == (str(files[1]), str(files[3]))
    assert config == tvm_int8.QuantizationConfig.preset("best", method="entropy")
    wanted = {"target": "znver4", "inputs": 2, "input_dtype": "uint8"}
    assert options == wanted | {"input_mean": (1, 2, 3), "input_std": (4, 5, 6)}


def test_unwritable_page_is_found_at_once(capsys, files, tmp_path):
    pytest.importorskip("matplotlib")
    files = [tmp_path / "no.onnx" if each == tmp_path / "net.onnx" else each for each in files]
    assert_one_line_error(run(capsys, *files, "--html", tmp_path / "no" / "report.html"), "cannot be written")
