"""Rules for operators that ONNX models are not imported with, and forms that are refused."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.relax import op

from tests.frontend.running import run_onnx, run_relax
from tvm_int8 import pipeline
from tvm_int8.errors import ModelError
from tvm_int8.frontend import load_model
from tvm_int8.onnx_export import export_onnx

CASES = {
    "square": op.square,
    "rsqrt": lambda x: op.rsqrt(op.add(op.abs(x), relax.const(1.0))),
    "round": op.round,
    "trunc": op.trunc,
    "not_equal": lambda x: op.not_equal(x, op.round(x)),
    "logical_xor": lambda x: op.logical_xor(op.greater(x, relax.const(0.0)), op.less(x, relax.const(1.0))),
    "nn.adaptive_avg_pool2d": lambda x: op.nn.adaptive_avg_pool2d(x, (3, 2)),
    "nn.max_pool2d": lambda x: op.nn.max_pool2d(x, (3, 3), (2, 2), ceil_mode=True),
    "nn.avg_pool2d": lambda x: op.nn.avg_pool2d(x, (2, 2), dilation=(2, 2)),
    "image.resize2d": lambda x: op.image.resize2d(
        x, (9, 11), method="nearest_neighbor", coordinate_transformation_mode="half_pixel", rounding_method="round"
    ),
    "take": lambda x: op.take(x, relax.const(np.array([5, -2, 1]), "int64"), axis=1, mode="clip"),
    "permute_dims": op.permute_dims,
    "tile": lambda x: op.tile(x, (2,)),
}


def module(make, shape=(1, 4, 6, 8)) -> tvm.IRModule:
    x = relax.Var("x", relax.TensorType(shape, "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            result = builder.emit_output(builder.normalize(make(x)))
        builder.emit_func_output(result)
    return builder.get()


@pytest.mark.parametrize("name", CASES)
def test_operator(name):
    mod = module(CASES[name])
    exported = export_onnx(pipeline.canonical_float()(load_model(mod)))
    x = np.random.default_rng(0).normal(size=(1, 4, 6, 8)).astype(np.float32) * 2
    (expected,), (found,) = run_relax(mod, [x]), run_onnx(exported, {"x": x})
    assert found.shape == expected.shape and found.dtype == expected.dtype
    np.testing.assert_allclose(found.astype(np.float64), expected.astype(np.float64), rtol=1e-5, atol=1e-6)


REFUSED = {
    "an operator without a form": (lambda x: op.cumsum(x, 1), ["cumsum", "no ONNX form"]),
    "windows of several sizes": (lambda x: op.nn.adaptive_avg_pool2d(x, (4, 3)), ["[6, 8] to [4, 3]"]),
    "the flattened argmax": (lambda x: op.argmax(x), ["flattened"]),
    "a pool of another layout": (lambda x: op.nn.max_pool2d(x, (2, 2), layout="NHWC"), ["NHWC"]),
    "padding that counts and rounds up": (
        lambda x: op.nn.avg_pool2d(x, (3, 3), (2, 2), (1, 1), ceil_mode=True, count_include_pad=True),
        ["rounds its size up"],
    ),
    "slopes from the data": (lambda x: op.nn.prelu(x, op.reshape(op.mean(x, [0, 2, 3]), (4,))), ["slope"]),
    "a resize of another layout": (lambda x: op.image.resize2d(x, (8, 8), layout="NHWC"), ["NHWC"]),
    "more repeats than axes": (lambda x: op.tile(x, (2, 1, 1, 1, 1)), ["repeats 5 axes of 4"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_form_is_refused_by_layer_and_operator(name):
    make, words = REFUSED[name]
    with pytest.raises(ModelError) as caught:
        export_onnx(pipeline.canonical_float()(load_model(module(make))))
    for word in ("layer '", *words):
        assert word in str(caught.value)
