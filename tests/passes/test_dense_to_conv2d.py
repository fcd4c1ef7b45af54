"""DenseToConv2d: dense layers become convolutions over the whole map."""

import numpy as np
import pytest
from tvm import relax

from tests.passes.pass_testing import (
    assert_same_numbers,
    call_named,
    const,
    constant,
    f32,
    module,
    ops,
    transformed,
)  # fmt: skip
from tvm_int8.passes.dense_to_conv2d import DenseToConv2d
from tvm_int8.passes.expressions import shape_of

op = relax.op


def test_a_dense_layer_is_a_pointwise_convolution():
    before = module(
        lambda emit, x: emit(op.add(emit(op.matmul(x, const(7, 3)), "fc"), const(3))), {"fc": "head"}, x=(2, 7)
    )
    after = transformed(DenseToConv2d(), before)
    assert ops(after)[:4] == ["reshape", "nn.conv2d", "reshape", "add"]
    assert shape_of(call_named(after, "nn.conv2d").args[1]) == (3, 7, 1, 1)
    assert "head" in dict(after["main"].attrs["layer_names"]).values()
    assert_same_numbers(before, after)


def test_flattening_a_map_is_part_of_the_convolution():
    def body(emit, x):
        return emit(op.matmul(emit(op.reshape(x, (2, 3 * 4 * 5))), const(60, 6)))

    before = module(body, x=(2, 3, 4, 5))
    after = transformed(DenseToConv2d(), before)
    assert ops(after)[:2] == ["nn.conv2d", "reshape"]
    assert shape_of(call_named(after, "nn.conv2d").args[1]) == (6, 3, 4, 5)
    assert_same_numbers(before, after)


def test_the_weight_of_a_qdq_model_stays_int8():
    values = np.random.default_rng(0).integers(-127, 128, (7, 3)).astype("int8")

    def body(emit, x):
        scale, zero_point = constant(f32(3, low=0.01, high=0.1)), constant(np.zeros(3, "int8"))
        return emit(op.matmul(x, emit(op.dequantize(constant(values), scale, zero_point, axis=1))))

    before = module(body, x=(2, 7))
    after = transformed(DenseToConv2d(), before)
    weight = call_named(after, "dequantize")
    assert shape_of(weight) == (3, 7, 1, 1)
    assert str(weight.args[0].ty.dtype) == "int8"
    assert int(weight.attrs.axis) == 0
    assert_same_numbers(before, after)


@pytest.mark.parametrize(
    "multiply",
    [
        lambda x: op.matmul(x, op.permute_dims(x)),
        lambda x: op.matmul(const(3, 2), x),
        lambda x: op.matmul(op.reshape(x, (1, 2, 7)), const(7, 3)),
        lambda x: op.matmul(x, const(1, 7, 3)),
    ],
    ids=["two activations", "constant on the left", "rank 3", "rank 3 weight"],
)
def test_other_products_stay(multiply):
    before = module(lambda emit, x: emit(multiply(x)), x=(2, 7))
    assert "nn.conv2d" not in ops(transformed(DenseToConv2d(), before))


def test_weights_scaled_per_input_stay():
    def body(emit, x):
        values, scale = constant(np.ones((7, 3), "int8")), constant(f32(7, low=0.01))
        return emit(op.matmul(x, emit(op.dequantize(values, scale, constant(np.zeros(7, "int8")), axis=0))))

    assert "nn.conv2d" not in ops(transformed(DenseToConv2d(), module(body, x=(2, 7))))
