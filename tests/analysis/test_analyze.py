"""What `analyze` says of a network, against the modules that `compile` makes of it."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

import tvm_int8
from tests.analysis.analyses import NAME, images, network
from tvm_int8.analysis import analyze as module
from tvm_int8.quantization.sqnr import sqnr_db

INPUTS = 6
CONFIG = tvm_int8.QuantizationConfig(method="percentile", percentile=98, per_channel_activations=False)


@pytest.fixture(scope="module")
def analysis() -> tvm_int8.Analysis:
    return tvm_int8.analyze(network(), images(), CONFIG, inputs=INPUTS, progress=False)


@pytest.fixture(scope="module")
def int8() -> tvm_int8.CompiledModule:
    return compiled(CONFIG)


@pytest.fixture(scope="module")
def exact() -> np.ndarray:
    return outputs(tvm_int8.compile(network(), quantization=None))


def compiled(config: tvm_int8.QuantizationConfig) -> tvm_int8.CompiledModule:
    return tvm_int8.compile(network(), calibration=images(), quantization=config, progress=False)


def outputs(run: tvm_int8.CompiledModule) -> np.ndarray:
    """Of the analysed inputs."""
    return np.concatenate([run(images()[i : i + 1])[0] for i in range(INPUTS)])


def test_noise_is_that_of_compiled_modules(analysis, int8, exact):
    assert sqnr_db(exact, outputs(int8)) == pytest.approx(analysis.sqnr_db, abs=0.1)
    first = analysis.suggestions[0]
    assert first.float_layers == (first.layer,)
    assert first.sqnr_db == pytest.approx(analysis.sqnr_db + first.gain_db)
    mixed = compiled(dataclasses.replace(CONFIG, float_layers=first.float_layers))
    assert sqnr_db(exact, outputs(mixed)) == pytest.approx(first.sqnr_db, abs=0.1)


def test_layers_are_those_of_the_report(analysis, int8):
    reported = {row.layer: row.sqnr_db for row in int8.report}
    assert analysis.layers[0].layer == NAME
    assert len(analysis.layers) == 4
    for layer in analysis.layers:
        assert layer.op == "nn.conv2d"
        assert layer.sqnr_db == pytest.approx(reported[layer.layer])


def test_shares_are_of_the_noise_alone(analysis):
    alone = [10 ** (-layer.alone_db / 10) for layer in analysis.layers]
    shares = [layer.share for layer in analysis.layers]
    assert sum(shares) == pytest.approx(1)
    np.testing.assert_allclose(shares, np.divide(alone, sum(alone)))
    for layer in analysis.layers:
        assert layer.alone_db > analysis.sqnr_db - 0.5
        assert layer.without_db > analysis.sqnr_db - 0.5


def test_suggestions_add_up(analysis):
    spent = 0.0
    for count, suggestion in enumerate(analysis.suggestions, 1):
        spent += suggestion.cost_share
        assert len(suggestion.float_layers) == count
        assert suggestion.float_layers[-1] == suggestion.layer
        assert suggestion.gain_db > 0
        assert suggestion.cost_share == pytest.approx(suggestion.cost / analysis.int8_time)
        assert suggestion.total_share == pytest.approx(spent)


def test_what_is_cut_off(analysis):
    """The first layer reads the input, of which everything is known."""
    activation = analysis.layers[0].activation
    read = images()[:INPUTS]
    step = (activation.high - activation.low) / 255
    outside = (read < activation.low - step / 2) | (read > activation.high + step / 2)
    assert activation.method == "percentile"
    assert 0.005 < activation.saturation < 0.05
    assert activation.saturation == pytest.approx(outside.mean())
    assert sum(activation.values.counts) == read.size
    assert activation.values.low <= read.min() < read.max() <= activation.values.high
    assert len(activation.values.counts) <= 85


def test_what_became_of_weights(analysis):
    for layer in analysis.layers:
        assert 30 < layer.weight.sqnr_db < 60
        assert layer.weight.low < 0 < layer.weight.high
    assert sum(analysis.layers[0].weight.levels.counts) == 16 * 3 * 3 * 3


def test_times_are_measured_here(analysis):
    assert analysis.time_unit == "us"
    assert "measured" in analysis.time_conditions
    for total, layers in (
        (analysis.int8_time, [layer.int8_time for layer in analysis.layers]),
        (analysis.float_time, [layer.float_time for layer in analysis.layers]),
    ):
        assert min(layers) > 0
        assert sum(layers) <= total * 1.001


def test_text(analysis):
    text = str(analysis)
    assert text.startswith("layer ")
    assert all(layer.layer in text for layer in analysis.layers)
    assert "on 6 inputs; 4/4 convolution and dense layers in INT8" in text
    assert f"{analysis.suggestions[0].layer} in FP32 gains" in text
    pasted = text.splitlines()[-1].partition("float_layers=")[2]
    assert json.loads(pasted) == list(analysis.suggestions[-1].float_layers)


def test_json(analysis):
    told = analysis.to_dict()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert [layer["layer"] for layer in told["layers"]] == [layer.layer for layer in analysis.layers]
    exact = dataclasses.replace(analysis, sqnr_db=math.inf).to_dict()
    assert exact["sqnr_db"] is None


def test_a_target_that_does_not_run_here_is_estimated(monkeypatch):
    monkeypatch.setattr(module, "missing_features", lambda features: ["amx"])
    config = dataclasses.replace(CONFIG, exclude=[NAME])
    analysis = tvm_int8.analyze(network(), images(1), config, target="sapphirerapids", progress=False)
    assert analysis.time_unit == "%"
    assert sum(layer.int8_time for layer in analysis.layers) == pytest.approx(100)
    assert "estimated" in str(analysis)
    assert "costs about" in str(analysis)
    assert [layer.layer for layer in analysis.layers if layer.sqnr_db is None] == []
    assert analysis.float_layers == {NAME: "excluded by the configuration"}
    assert analysis.inputs == 1


def test_images_of_bytes_are_not_rounded():
    data = (images(2) * 40 + 128).clip(0, 255).astype(np.uint8)
    options = {"input_dtype": "uint8", "input_mean": 128.0, "input_std": 40.0}
    analysis = tvm_int8.analyze(network(), data, progress=False, **options)
    first = analysis.layers[0].activation
    assert (first.method, first.saturation) == ("bytes", 0.0)
    assert sum(first.values.counts) == 2 * 3 * 10 * 10


def test_no_data():
    with pytest.raises(tvm_int8.CalibrationError, match=r"calibration: None; .* pass the calibration data itself"):
        tvm_int8.analyze(network(), None)
    table = tvm_int8.calibrate(network(), images(1), progress=False)
    with pytest.raises(tvm_int8.CalibrationError, match="a calibration table; expected typical inputs"):
        tvm_int8.analyze(network(), table)


def test_networks_with_scales_of_their_own():
    quantized = tvm_int8.quantize(network(), images(1), progress=False)
    with pytest.raises(tvm_int8.CalibrationError, match=r"a QuantizedModel; .* analyse the network"):
        tvm_int8.analyze(quantized, images())
    with pytest.raises(tvm_int8.CalibrationError, match=r"a QDQ model; .* analyse the network"):
        tvm_int8.analyze(quantized.to_onnx(), images())


@pytest.mark.parametrize("inputs", [0, 129, 1.5, True])
def test_numbers_of_inputs(inputs):
    with pytest.raises(tvm_int8.ConfigError, match=r"option 'inputs'.*a whole number from 1 to 128"):
        tvm_int8.analyze(network(), images(), inputs=inputs)


def test_nothing_to_quantise():
    with pytest.raises(tvm_int8.ConfigError, match="option 'quantization': None"):
        tvm_int8.analyze(network(), images(), None)
    with pytest.raises(tvm_int8.ModelError, match="no layer that computes in INT8"):
        tvm_int8.analyze(network(), images(1), {"exclude": ["*"]}, progress=False)
