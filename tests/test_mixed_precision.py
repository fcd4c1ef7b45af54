"""`tvm_int8.mixed_precision`: as few layers in FP32 as an accuracy needs, and always the best that was found."""

from __future__ import annotations

import numpy as np
import pytest

import tvm_int8
from tests.analysis.analyses import images, network
from tvm_int8.quantization.sqnr import sqnr_db


@pytest.fixture(scope="module")
def reference():
    module = tvm_int8.compile(network(), quantization=None, num_threads=1)
    return [module(x[None])[0].copy() for x in images(4)]


def accuracy(reference):
    """SQNR of the outputs, as a stand-in for what users measure."""
    return lambda module: sqnr_db(np.ravel(reference), np.ravel([module(x[None])[0].copy() for x in images(4)]))


def search(evaluate, target, **options):
    return tvm_int8.mixed_precision(network(), images(4), evaluate, target, num_threads=1, progress=False, **options)


def test_nothing_is_left_out_when_int8_is_enough(reference):
    found = search(accuracy(reference), 1.0)
    assert found.reached
    assert found.layers == ()
    assert [trial.layers for trial in found.trials] == [()]


def test_a_target_between_int8_and_fp32(reference):
    evaluate = accuracy(reference)
    all_int8 = search(evaluate, 1.0).accuracy
    found = search(evaluate, all_int8 + 1.0)
    assert found.reached
    assert found.layers
    module = tvm_int8.compile(found.model, num_threads=1)
    assert evaluate(module) == found.accuracy
    floats = {row.layer for row in module.report if row.reason == "left in FP32 for accuracy"}
    assert floats == set(found.layers) == set(found.config.float_layers)
    for layer in found.layers:  # none is in vain
        without = [trial for trial in found.trials if set(trial.layers) == set(found.layers) - {layer}]
        assert all(trial.accuracy < found.target for trial in without)
        assert without
    assert "is reached" in str(found)


def test_an_impossible_target_gives_the_best_that_was_found():
    found = search(lambda module: float(len(module.report)), 1e9, max_trials=3)
    assert not found.reached
    assert found.accuracy == max(trial.accuracy for trial in found.trials)
    assert len(found.trials) <= 3
    assert "not reached" in str(found)


def test_interrupted_searches_return_the_best_so_far():
    seen = []

    def evaluate(module):
        if seen:
            raise KeyboardInterrupt
        seen.append(module)
        return 0.5

    found = search(evaluate, 0.9)
    assert (found.accuracy, found.reached, len(found.trials)) == (0.5, False, 1)


def test_nothing_was_evaluated_yet():
    def evaluate(module):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(evaluate, 0.9)


def test_what_users_evaluate_raises_its_own_errors():
    def evaluate(module):
        raise ZeroDivisionError("no images")

    with pytest.raises(ZeroDivisionError, match="no images"):
        search(evaluate, 0.9)


def test_refused():
    with pytest.raises(tvm_int8.CalibrationError, match="calibration: None; expected typical inputs"):
        tvm_int8.mixed_precision(network(), None, float, 0.9)
    table = tvm_int8.calibrate(network(), images(1), progress=False)
    with pytest.raises(tvm_int8.CalibrationError, match="a calibration table; expected typical inputs"):
        tvm_int8.mixed_precision(network(), table, float, 0.9)
    quantized = tvm_int8.quantize(network(), images(1), progress=False)
    with pytest.raises(tvm_int8.CalibrationError, match="a QuantizedModel; expected a float model"):
        tvm_int8.mixed_precision(quantized, images(1), float, 0.9)
    for options in ({"max_trials": 0}, {"quantization": None}):
        with pytest.raises(tvm_int8.ConfigError, match="mixed_precision"):
            search(float, 0.9, **options)
    with pytest.raises(tvm_int8.ConfigError, match="a finite target"):
        search(float, float("nan"))
