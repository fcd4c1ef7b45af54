"""`tvm_int8.quantize`: between calibration and code, as a module to compile and as a file for other runtimes."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest

import tvm_int8
from tests.frontend.running import run_onnx
from tests.numpy_calibration import imported, quantize, run_qdq, small_network
from tests.small_networks import NETWORKS, Network, draw
from tvm_int8 import CalibrationError, ConfigError, ModelError
from tvm_int8.cli.quantize import RUNTIMES
from tvm_int8.quantization.sqnr import sqnr_db
from tvm_int8.quantized_model import QuantizedModel

EXACT = [(name, runtime) for name in NETWORKS for runtime in RUNTIMES]


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    net = Network(x=(1, 3, 8, 8))
    y = net.relu(net.conv("x", 8))
    return net.finish(net.conv(net.relu(net.add("Add", net.conv(y, 8), y)), 6))


@pytest.fixture(scope="module")
def quantized(model) -> QuantizedModel:
    return quantize(model)


# Compile


def test_compile_takes_it_and_does_the_same_as_from_the_model(model):
    data = draw(model, 4, seed=0)
    found = tvm_int8.quantize(model, data, progress=False)
    direct, through = tvm_int8.compile(model, calibration=data, progress=False), tvm_int8.compile(found)
    (inputs,) = draw(model, 1, seed=1)
    np.testing.assert_array_equal(direct(*inputs.values())[0], through(*inputs.values())[0])
    assert direct.report.to_dict() == through.report.to_dict()
    assert direct.metadata.quantization == through.metadata.quantization == found.notes == {"ranges": "calibration"}
    assert all(row.sqnr_db is not None for row in through.report if row.precision == "int8")


def test_the_exported_file_compiles_to_the_same_bits(quantized, model, tmp_path):
    quantized.to_onnx(tmp_path / "int8.onnx")
    direct, through = tvm_int8.compile(quantized), tvm_int8.compile(tmp_path / "int8.onnx")
    for inputs in draw(model, 2, seed=1):
        np.testing.assert_array_equal(direct(*inputs.values())[0], through(*inputs.values())[0])
    assert direct.report.summary == through.report.summary


@pytest.mark.parametrize(("name", "runtime"), EXACT)
def test_what_was_exported_is_imported_to_the_same_bits(name, runtime):
    """The kernels' own arithmetic in NumPy, which compiled modules equal bit for bit."""
    source, found = small_network(name, runtime)
    back = imported(found.to_onnx())
    for inputs in draw(source, 1, seed=1):
        for expected, result in zip(run_qdq(found.mod, inputs), run_qdq(back, inputs), strict=True):
            np.testing.assert_array_equal(result, expected)


def test_several_targets_from_one(quantized):
    modules = [tvm_int8.compile(quantized, target=target) for target in ("cascadelake", "haswell")]
    assert [module.metadata.mcpu for module in modules] == ["cascadelake", "haswell"]


GIVEN = {
    "calibration": [np.zeros((1, 3, 8, 8), np.float32)],
    "quantization": {"method": "minmax"},
    "input_shapes": {"x": (1, 3, 8, 8)},
    "input_dtype": "uint8",
    "input_mean": 1.0,
    "input_std": 2.0,
}


@pytest.mark.parametrize("option", GIVEN)
def test_nothing_of_quantisation_can_be_chosen_again(quantized, option):
    with pytest.raises(ConfigError, match=f"option '{option}': given for a QuantizedModel.*pass it to quantize"):
        tvm_int8.compile(quantized, **{option: GIVEN[option]})


# Quantize


def test_it_holds_what_compile_needs(quantized, model):
    assert quantized.config == tvm_int8.QuantizationConfig()
    assert "x" in quantized.table
    assert quantized.notes == {"ranges": "calibration"}
    (inputs,) = draw(model, 1, seed=1)
    assert sqnr_db(run_onnx(model, inputs)[0], run_qdq(quantized.mod, inputs)[0]) > 25
    np.testing.assert_allclose(run_qdq(quantized.float_mod, inputs)[0], run_onnx(model, inputs)[0], atol=1e-4)
    assert len(repr(quantized)) < 1000


def test_options_reach_it(model):
    found = quantize(model, {"exclude": ["/conv0"], "per_channel_weights": False})
    scales = [t for t in found.to_onnx().graph.initializer if t.name.endswith("weight_scale")]
    assert [list(tensor.dims) for tensor in scales] == [[], []]
    assert quantize(model, "fast").config == tvm_int8.QuantizationConfig.preset("fast")


def test_a_table_serves(quantized, model, tmp_path):
    quantized.table.save(tmp_path / "table.json")
    again = quantize(model, calibration=tmp_path / "table.json")
    assert again.to_onnx() == quantized.to_onnx()


def test_a_table_without_the_inner_tensors_is_refused(quantized, model):
    with pytest.raises(CalibrationError, match="no range for"):
        quantize(model, {"plain_convolutions": True}, quantized.table)


def test_a_table_of_plain_convolutions_serves_others(model):
    table = quantize(model, RUNTIMES["onnxruntime"]).table
    assert quantize(model, RUNTIMES["openvino"], table).to_onnx() == quantize(model, RUNTIMES["openvino"]).to_onnx()


def test_quantised_models_pass_through(quantized, model):
    with pytest.warns(UserWarning, match="quantised already"):
        again = tvm_int8.quantize(quantized.to_onnx(), draw(model, 1, seed=0))
    assert again.table is None
    (inputs,) = draw(model, 1, seed=1)
    exported = again.to_onnx()
    np.testing.assert_array_equal(run_onnx(exported, inputs)[0], run_onnx(quantized.to_onnx(), inputs)[0])


def test_warnings_point_at_the_caller(quantized, model):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tvm_int8.quantize(quantized.to_onnx(), draw(model, 1, seed=0))
    assert [Path(warning.filename) for warning in caught] == [Path(__file__)]


def test_without_options_it_is_refused(model):
    with pytest.raises(ConfigError, match="option 'config': None"):
        tvm_int8.quantize(model, config=None)


def test_plain_convolutions_round_in_front_of_additions(model):
    """Every convolution is followed by a QuantizeLinear, and the addition reads nothing else."""
    for plain in (True, False):
        nodes = quantize(model, {"plain_convolutions": plain, "per_channel_activations": False}).to_onnx().graph.node
        producer = {name: made.op_type for made in nodes for name in made.output}
        (addition,) = [made for made in nodes if made.op_type == "Add"]
        kinds = sorted(producer[name] for name in addition.input)
        assert kinds == (["DequantizeLinear"] * 2 if plain else ["Conv", "DequantizeLinear"])


# Files


def test_a_file_holds_what_is_returned(quantized, tmp_path):
    path = tmp_path / "int8.onnx"
    returned = quantized.to_onnx(path)
    assert onnx.load(path) == returned
    assert os.listdir(tmp_path) == ["int8.onnx"]


def test_a_file_is_replaced_as_a_whole(quantized, tmp_path, monkeypatch):
    path = tmp_path / "int8.onnx"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(ModelError, match=r"cannot be written.*No space left on device"):
        quantized.to_onnx(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["int8.onnx"]


def test_a_directory_that_does_not_exist(quantized, tmp_path):
    with pytest.raises(ModelError, match=r"none.*cannot be written.*existing, writable directory"):
        quantized.to_onnx(tmp_path / "none" / "int8.onnx")
