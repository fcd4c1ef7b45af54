import numpy as np
import pytest

from tvm_int8.quantization.scale_zero_point import covering_zero, scale_zero_point


@pytest.mark.parametrize(
    ("low", "high", "dtype", "scale", "zero_point"),
    [
        (0.0, 255.0, "uint8", 1.0, 0),
        (-255.0, 0.0, "uint8", 1.0, 255),
        (2.0, 255.0, "uint8", 1.0, 0),  # widened down to 0
        (-255.0, -3.0, "uint8", 1.0, 255),  # widened up to 0
        (-128.0, 127.0, "uint8", 1.0, 128),
        (-128.0, 127.0, "int8", 1.0, 0),
        (0.0, 255.0, "int8", 1.0, -128),
        (-1.0, 1.0, "uint8", 2 / 255, 128),  # 127.5 to even
        (0.0, 0.0, "uint8", 1.0, 0),
        (0.0, 1e-44, "uint8", 1.0, 0),
        (-1e38, 3.1e38, "uint8", 4.1e38 / 255, 62),
    ],
)
def test_known_ranges(low, high, dtype, scale, zero_point):
    found_scale, found_zero_point = scale_zero_point(low, high, dtype)
    assert found_scale == np.float32(scale)
    assert found_zero_point == zero_point
    assert isinstance(found_scale, np.float32)
    assert type(found_zero_point) is int


def test_every_range_keeps_zero_exact_and_its_ends_within_half_a_step():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        low, high = np.sort(rng.standard_normal(2) * 10.0 ** rng.uniform(-30, 30)).astype(np.float32)
        for dtype in ("uint8", "int8"):
            scale, zero_point = scale_zero_point(low, high, dtype)
            limits = np.iinfo(dtype)
            assert limits.min <= zero_point <= limits.max
            assert scale > 0
            real_low = (limits.min - zero_point) * float(scale)
            real_high = (limits.max - zero_point) * float(scale)
            assert abs(real_low - min(low, 0)) <= 0.501 * scale
            assert abs(real_high - max(high, 0)) <= 0.501 * scale


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_agrees_with_onnx_runtime(dtype):
    quant_utils = pytest.importorskip("onnxruntime.quantization.quant_utils")
    limits = np.iinfo(dtype)
    ends = np.array(limits.min, dtype), np.array(limits.max, dtype)
    rng = np.random.default_rng(1)
    for _ in range(500):
        low, high = np.sort(rng.standard_normal(2) * 10.0 ** rng.uniform(-5, 5)).astype(np.float32)
        zero_point, scale = quant_utils.compute_scale_zp(np.array(low), np.array(high), *ends)
        found_scale, found_zero_point = scale_zero_point(low, high, dtype)
        # Releases before 1.31 subtract in float32: one rounding more.
        np.testing.assert_allclose(found_scale, scale, rtol=2e-7)
        assert found_zero_point == zero_point


@pytest.mark.parametrize(
    ("low", "high", "dtype", "scale", "zero_point"),
    [
        (-1.0, 1.0, "uint8", 2 / 255, 128),
        (-0.1, 1.0, "uint8", 2 / 255, 128),
        (-1.0, -0.5, "uint8", 2 / 255, 128),
        (-1.0, 0.3, "int8", 2 / 255, 0),
        (0.0, 255.0, "uint8", 1.0, 0),
        (0.5, 255.0, "uint8", 1.0, 0),
        (0.0, 255.0, "int8", 1.0, -128),
        (-0.0, 1.0, "uint8", 1 / 255, 0),
        (0.0, 0.0, "uint8", 1.0, 0),
        (-1e-44, 1e-44, "uint8", 1.0, 0),
        (-3e38, 3.4e38, "uint8", 6.8e38 / 255, 128),
    ],
)
def test_symmetric_ranges(low, high, dtype, scale, zero_point):
    assert scale_zero_point(low, high, dtype, symmetric=True) == (np.float32(scale), zero_point)


def test_symmetric_zero_points_are_exact_for_any_range():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        low, high = np.sort(rng.standard_normal(2) * 10.0 ** rng.uniform(-30, 30)).astype(np.float32)
        scale, zero_point = scale_zero_point(low, high, symmetric=True)
        assert zero_point == (128 if low < 0 else 0)
        np.testing.assert_allclose(scale * 127.5, max(-low, high) if low < 0 else high / 2, rtol=1e-6)


def test_many_ranges_are_widened_as_one_is():
    low, high = np.sort(np.random.default_rng(0).standard_normal((2, 50)) + 0.5, axis=0)
    for symmetric in (False, True):
        many = covering_zero(low, high, symmetric)
        single = [covering_zero(*pair, symmetric) for pair in zip(low, high, strict=True)]
        np.testing.assert_array_equal(many, np.transpose(single))
        assert (many[0] <= np.minimum(low, 0)).all() and (many[1] >= np.maximum(high, 0)).all()
