"""Networks built by `benchmarks.generate`: healthy, and compiled as exactly as the downloaded kind."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import generate, metrics, numpy_layers, peers
from benchmarks.compare import FP32_TOLERANCE
from benchmarks.images import synthetic_images

ort = pytest.importorskip("onnxruntime")

NETWORKS = {
    "mobilenet_v1": lambda: generate.mobilenet_v1(image=96, alpha=0.25),
    "resnet50_batch2": lambda: generate.resnet50(batch=2, image=64),
}


def inputs_of(model, count: int, seed: int) -> list[np.ndarray]:
    batch, *shape = (dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim)
    drawn = synthetic_images(count * batch, tuple(shape), seed)
    return [np.concatenate(drawn[i * batch : (i + 1) * batch]) for i in range(count)]


@pytest.fixture(scope="module", params=NETWORKS)
def model(request):
    return NETWORKS[request.param]()


def test_logits_are_healthy_and_depend_on_the_input(model, run_all):
    logits = np.concatenate(run_all(peers.ort_fp32(model, [], 1).infer, inputs_of(model, 6, 1)))
    assert 0.1 < logits.std() < 10
    assert logits.std(axis=0).mean() > 0.1 * logits.std()


def test_weights_are_the_same_on_every_call():
    first, second = (generate.mobilenet_v1(image=32, alpha=0.25).SerializeToString() for _ in range(2))
    assert first == second


@pytest.mark.parametrize(("groups", "stride", "kernel"), [(1, 1, 3), (1, 2, 7), (4, 2, 3), (1, 2, 1)])
def test_numpy_convolution_matches_onnxruntime(rng, groups, stride, kernel):
    builder = generate.GraphBuilder("conv", (2, 4, 128, 128))
    y = builder.conv_bn(builder.input, "layer", 4 if groups > 1 else 8, kernel, stride, groups)
    model = builder.finish(builder.max_pool(y, "pool", 3, 2))
    actual = peers.ort_fp32(model, [], 1).infer(builder.input.value)
    pooled = numpy_layers.max_pool2d(y.value, 3, 2, 1)
    assert metrics.relative_error([pooled], actual) < 1e-4


@pytest.mark.slow
def test_fp32_matches_onnxruntime(model, run_all):
    import tvm_int8

    inputs = inputs_of(model, 2, 1)
    reference = run_all(peers.ort_fp32(model, [], 2).infer, inputs)
    actual = run_all(tvm_int8.compile(model, quantization=None), inputs)
    assert metrics.relative_error(reference, actual) <= FP32_TOLERANCE


@pytest.mark.slow
def test_int8_is_as_exact_as_onnxruntime(model, run_all):
    import tvm_int8

    calibration, inputs = inputs_of(model, 16, 0), inputs_of(model, 8, 1)
    reference = run_all(peers.ort_fp32(model, [], 2).infer, inputs)
    theirs = metrics.sqnr_db(reference, run_all(peers.ort_int8(model, calibration, 2).infer, inputs))
    ours = metrics.sqnr_db(reference, run_all(tvm_int8.compile(model, calibration=calibration), inputs))
    assert ours >= theirs, f"SQNR {ours:.2f} dB, ONNX Runtime {theirs:.2f} dB"
