"""Why layers of an imported QDQ model are in FP32."""

import numpy as np
import pytest
from tvm import relax

from tests.passes.pass_testing import const, constant, f32, module
from tests.passes.qdq_testing import int8_weight, qdq
from tvm_int8.passes.float_reasons import float_reasons

op = relax.op


def odd_weight(emit):
    values = np.random.default_rng(0).integers(-127, 128, (4, 3, 1, 1)).astype("int8")
    return emit(op.dequantize(constant(values), constant(f32(3, low=0.1)), constant(np.zeros(3, "int8")), axis=1))


def per_channel(emit, x):
    scale, zero_point = constant(f32(3, low=0.1)), constant(np.full(3, 128, "uint8"))
    q = emit(op.quantize(x, scale, zero_point, axis=1, out_dtype="uint8"))
    return emit(op.dequantize(q, scale, zero_point, axis=1))


CASES = {
    "16 bits": (
        lambda emit, x: op.nn.conv2d(qdq(emit, x, 0.001, 300, "uint16"), int8_weight(emit, 4, 3, 1, 1)),
        "its data are uint16, and kernels take 8 bits",
    ),
    "float data": (lambda emit, x: op.nn.conv2d(x, int8_weight(emit, 4, 3, 1, 1)), "its data are not quantised"),
    "float weight": (lambda emit, x: op.nn.conv2d(qdq(emit, x), const(4, 3, 1, 1)), "its weight is not quantised"),
    "scales of inputs": (
        lambda emit, x: op.nn.conv2d(qdq(emit, x), odd_weight(emit)),
        "its weight is not a constant of 8 bits with one scale, or one per output channel",
    ),
    "scales of data": (
        lambda emit, x: op.nn.conv2d(per_channel(emit, x), int8_weight(emit, 4, 3, 1, 1)),
        "its data have a scale per channel, and it adds channels up",
    ),
    "activations": (
        lambda emit, x: op.matmul(qdq(emit, x), qdq(emit, x)),
        "no INT8 kernel for matmul of [1, 3, 5, 5] and [1, 3, 5, 5]",
    ),
    "integers": (lambda emit, x: op.nn.conv2d(qdq(emit, x), int8_weight(emit, 4, 3, 1, 1)), None),
}


@pytest.mark.parametrize("name", CASES)
def test_reasons(name):
    body, expected = CASES[name]

    def with_name(emit, x):
        return qdq(emit, emit(body(emit, x), "layer"))

    reasons = float_reasons(module(with_name, {"layer": "/layer"}, x=(1, 3, 5, 5)))
    assert reasons.get("/layer") == expected
