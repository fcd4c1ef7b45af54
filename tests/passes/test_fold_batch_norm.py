"""FoldBatchNorm: into the layer before, or one multiply and one add."""

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.relax import op

from tests.passes.pass_testing import assert_same_numbers, call_named, const, f32, module, names, ops, transformed
from tvm_int8.errors import ModelError
from tvm_int8.passes.affine_chains import fold_chains
from tvm_int8.passes.dataflow import Dataflow, const_value, constant, shape_of
from tvm_int8.passes.fold_batch_norm import FoldBatchNorm

EPSILON = 1e-3


def statistics(channels, seed=20):
    """gamma, beta, mean, variance"""
    return [
        f32(channels, seed=seed),
        f32(channels, seed=seed + 1),
        f32(channels, seed=seed + 2),
        f32(channels, seed=seed + 3, low=0.1, high=2),
    ]


def batch_norm(x, channels, axis=1, training=False, **flags):
    parameters = [constant(array) for array in statistics(channels)]
    return op.nn.batch_norm(x, *parameters, axis=axis, epsilon=EPSILON, training=training, **flags)


def normalised(emit, x, channels, **flags):
    return relax.TupleGetItem(emit(batch_norm(x, channels, **flags), "bn"), 0)


LAYERS = {
    "conv2d": ((1, 4, 6, 6), lambda x: op.nn.conv2d(x, const(6, 4, 3, 3), padding=1), 6),
    "grouped": ((1, 4, 6, 6), lambda x: op.nn.conv2d(x, const(6, 2, 3, 3), groups=2, strides=2), 6),
    "depthwise": ((1, 4, 6, 6), lambda x: op.nn.conv2d(x, const(4, 1, 3, 3), groups=4, padding=1), 4),
    "transposed": ((1, 4, 5, 5), lambda x: op.nn.conv2d_transpose(x, const(4, 6, 3, 3), strides=(2, 2)), 6),
    "grouped transposed": ((1, 4, 5, 5), lambda x: op.nn.conv2d_transpose(x, const(4, 3, 3, 3), groups=2), 6),
    "dense": ((3, 4), lambda x: op.matmul(x, const(4, 6)), 6),
}


@pytest.mark.parametrize("bias", ["no bias", "bias"])
@pytest.mark.parametrize("layer", LAYERS)
def test_folds_into_the_layer_before(layer, bias):
    shape, make, channels = LAYERS[layer]

    def body(emit, x):
        y = emit(make(x), "layer")
        if bias == "bias":
            y = emit(op.add(y, const(*((1, channels, 1, 1) if len(shape) == 4 else (channels,)), seed=3)), "biased")
        return op.nn.relu(emit(normalised(emit, y, channels), "normalised"))

    before = module(body, layer_names={"layer": "a", "normalised": "b"}, x=shape)
    after = transformed(FoldBatchNorm(), before)
    assert ops(after) == [ops(before)[0], "add", "nn.relu"]
    assert names(after) == ["layer", "normalised", "out"]
    assert shape_of(call_named(after, "add").args[1]) == ((1, channels, 1, 1) if len(shape) == 4 else (channels,))
    assert_same_numbers(before, after)


def test_weights_and_bias_are_the_float64_ones_rounded_once():
    before = module(lambda emit, x: normalised(emit, emit(LAYERS["conv2d"][1](x)), 6), x=LAYERS["conv2d"][0])
    after = transformed(FoldBatchNorm(), before)
    gamma, beta, mean, var = (array.astype("float64") for array in statistics(6))
    scale = gamma / np.sqrt(var + EPSILON)
    weight = const_value(call_named(after, "nn.conv2d").args[1])
    np.testing.assert_array_equal(weight, (f32(6, 4, 3, 3) * scale[:, None, None, None]).astype("float32"))
    shift = const_value(call_named(after, "add").args[1]).ravel()
    np.testing.assert_allclose(shift, (beta - mean * scale).astype("float32"), rtol=1e-7)


@pytest.mark.parametrize(("center", "scale"), [(False, True), (True, False), (False, False)])
def test_gamma_or_beta_switched_off(center, scale):
    def body(emit, x):
        return normalised(emit, emit(LAYERS["conv2d"][1](x)), 6, center=center, scale=scale)

    before = module(body, x=(1, 4, 6, 6))
    after = transformed(FoldBatchNorm(), before)
    assert ops(after) == ["nn.conv2d", "add"]
    assert_same_numbers(before, after)


@pytest.mark.parametrize("shape", [(2, 4, 5, 5), (3, 4), (2, 4, 5)])
def test_without_a_layer_it_becomes_multiply_and_add(shape):
    before = module(lambda emit, x: op.nn.relu(emit(normalised(emit, emit(op.exp(x)), 4), "n")), x=shape)
    after = transformed(FoldBatchNorm(), before)
    assert ops(after) == ["exp", "multiply", "add", "nn.relu"]
    assert names(after)[2] == "n"
    assert shape_of(call_named(after, "multiply").args[1]) == (1, 4, 1, 1)[: len(shape)]
    assert_same_numbers(before, after)


def test_layer_read_twice_keeps_its_weights():
    def body(emit, x):
        y = emit(LAYERS["conv2d"][1](x), "layer")
        return [normalised(emit, y, 6), op.nn.relu(y)]

    before = module(body, x=(1, 4, 6, 6))
    after = transformed(FoldBatchNorm(), before)
    assert sorted(ops(after)) == ["add", "multiply", "nn.conv2d", "nn.relu"]
    assert_same_numbers(before, after)


def test_layer_that_is_an_output_keeps_its_weights():
    def body(emit, x):
        y = emit(LAYERS["conv2d"][1](x), "layer")
        return [y, normalised(emit, y, 6)]

    before = module(body, x=(1, 4, 6, 6))
    after = transformed(FoldBatchNorm(), before)
    assert sorted(op for op in ops(after) if op != "DataflowVar") == ["add", "multiply", "nn.conv2d"]
    assert_same_numbers(before, after)


def test_same_batch_norm_result_taken_twice():
    def body(emit, x):
        tuple_ = emit(batch_norm(emit(LAYERS["conv2d"][1](x), "layer"), 6), "bn")
        return [op.exp(emit(relax.TupleGetItem(tuple_, 0))), op.nn.relu(emit(relax.TupleGetItem(tuple_, 0)))]

    before = module(body, x=(1, 4, 6, 6))
    after = transformed(FoldBatchNorm(), before)
    assert "nn.batch_norm" not in ops(after)
    assert_same_numbers(before, after)


def test_no_tuple_survives_even_when_the_statistics_are_read():
    def body(emit, x):
        tuple_ = emit(batch_norm(x, 4), "bn")
        return [relax.TupleGetItem(tuple_, 0), op.exp(emit(relax.TupleGetItem(tuple_, 1)))]

    before = module(body, x=(1, 4, 5, 5))
    after = transformed(FoldBatchNorm(), before)
    assert sorted(ops(after)) == ["add", "exp", "multiply"]
    assert_same_numbers(before, after)


def test_dense_rows_normalised_along_another_axis_are_not_its_channels():
    def body(emit, x):
        return normalised(emit, emit(op.matmul(x, const(4, 6))), 5, axis=1)

    before = module(body, x=(2, 5, 4))
    after = transformed(FoldBatchNorm(), before)
    assert ops(after) == ["matmul", "multiply", "add"]
    assert_same_numbers(before, after)


def test_quantised_weights_are_left_alone():
    def body(emit, x):
        weight = constant(np.arange(-108, 108).reshape(6, 4, 3, 3).astype("int8"))
        scale, zero = const(6, low=0.01, high=0.1), constant(np.zeros(6, "int8"))
        y = emit(op.nn.conv2d(x, emit(op.dequantize(weight, scale, zero, 0)), padding=1))
        return normalised(emit, y, 6)

    before = module(body, x=(1, 4, 6, 6))
    after = transformed(FoldBatchNorm(), before)
    assert ops(after) == ["dequantize", "nn.conv2d", "multiply", "add"]
    assert_same_numbers(before, after)


def test_statistics_that_are_inputs_stay():
    def body(emit, x, mean):
        gamma, beta, _, var = (constant(array) for array in statistics(4))
        return relax.TupleGetItem(emit(op.nn.batch_norm(x, gamma, beta, mean, var, axis=1, training=False)), 0)

    before = module(body, x=(1, 4, 5, 5), mean=(4,))
    tvm.ir.assert_structural_equal(transformed(FoldBatchNorm(), before), before)


def test_only_chains_with_a_batch_norm_are_touched():
    before = module(lambda emit, x: op.multiply(emit(LAYERS["conv2d"][1](x)), const(1, 6, 1, 1)), x=(1, 4, 6, 6))
    tvm.ir.assert_structural_equal(transformed(FoldBatchNorm(), before), before)


def test_training_mode_is_an_error_that_names_the_layer():
    before = module(lambda emit, x: op.exp(emit(normalised(emit, x, 4, training=True), "bn1")), x=(1, 4, 5, 5))
    with pytest.raises(ModelError, match=r"bn1: batch_norm in training mode.*eval"):
        fold_chains(before, around_batch_norm=True)


def test_zero_variance_stays_finite_through_epsilon():
    def body(emit, x):
        gamma, beta, mean, _ = (constant(array) for array in statistics(6))
        zero = constant(np.zeros(6, "float32"))
        y = emit(LAYERS["conv2d"][1](x))
        return relax.TupleGetItem(emit(op.nn.batch_norm(y, gamma, beta, mean, zero, axis=1, training=False)), 0)

    before = module(body, x=(1, 4, 6, 6))
    after = transformed(FoldBatchNorm(), before)
    assert all(np.isfinite(const_value(b.value.args[1])).all() for b in Dataflow(after).bindings)
    assert_same_numbers(before, after)
