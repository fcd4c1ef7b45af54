import math

import numpy as np
import pytest

from tvm_int8.quantization.sqnr import sqnr_db


@pytest.mark.parametrize(("noise", "expected"), [(0.1, 20.0), (0.01, 40.0), (1.0, 0.0), (10.0, -20.0)])
def test_known_ratios(noise, expected):
    signal = np.ones((2, 3, 4))
    assert sqnr_db(signal, signal + noise) == pytest.approx(expected)


def test_zero_noise_and_zero_signal():
    x = np.array([1.0, -2.0])
    assert sqnr_db(x, x) == math.inf
    assert sqnr_db(0 * x, 0 * x) == math.inf
    assert sqnr_db(0 * x, x) == -math.inf
    assert sqnr_db(x, 0 * x) == 0.0
    assert sqnr_db([], []) == math.inf


@pytest.mark.parametrize(("reference", "value"), [([np.nan], [1.0]), ([1.0], [np.nan]), ([0.0], [np.nan])])
def test_nan_stays_nan(reference, value):
    assert math.isnan(sqnr_db(reference, value))


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(2, 1\), value \(2,\)"):
        sqnr_db(np.ones((2, 1)), np.ones(2))


def test_integers_do_not_wrap_and_float32_does_not_overflow():
    assert sqnr_db(np.array([200], np.uint8), np.array([220], np.uint8)) == pytest.approx(20.0)
    assert sqnr_db(np.array([1e30], np.float32), np.array([0.9e30], np.float32)) == pytest.approx(20.0, abs=1e-4)


def test_eight_bits_of_a_sine_are_worth_50_db():
    signal = np.sin(np.linspace(0, 200 * np.pi, 100_001))
    quantized = np.rint(signal * 127.5) / 127.5
    assert sqnr_db(signal, quantized) == pytest.approx(6.02 * 8 + 1.76, abs=0.3)
