"""Canonicalize: each spelling on the left becomes the one on the right, and nothing else does."""

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.relax import op

from tests.passes.pass_testing import assert_same_numbers, call_named, const, module, names, ops, transformed
from tvm_int8.passes.canonicalize import Canonicalize
from tvm_int8.passes.dataflow import const_value, constant, shape_of

MAP = (2, 4, 6, 6)


def scalar(value):
    return constant(np.float32(value))


def conv(x, **kwargs):
    return op.nn.conv2d(x, const(4, 4, 3, 3), **kwargs)


def avg_pool(x, size, **kwargs):
    return op.nn.avg_pool2d(x, size, **kwargs)


def pad(x, top, bottom, left, right, **kwargs):
    return op.nn.pad(x, [0, 0, 0, 0, top, bottom, left, right], **kwargs)


def mean_of_mean(emit, x):
    return op.mean(emit(op.mean(x, [3])), [2])


def split_and_swap(emit, x):
    parts = emit(op.split(x, 2, 1), "parts")
    first, second = (emit(relax.TupleGetItem(parts, i), f"part{i}") for i in range(2))
    return op.concat([second, first], 1)


def split_unevenly(emit, x):
    return op.nn.relu(emit(relax.TupleGetItem(emit(op.split(x, [1, 4], -1)), 2)))


def many_reshapes(emit, x):
    return op.exp(emit(op.squeeze(emit(op.expand_dims(emit(op.reshape(x, (8, 36))), [1])), [1])))


def there_and_back(emit, x):
    return op.exp(emit(op.reshape(emit(op.reshape(x, (8, 36))), MAP)))


def rows_of_concat(emit, x, row=3):
    pixels = emit(op.permute_dims(x, [0, 2, 3, 1]))
    parts = [emit(op.reshape(part, (2, 144))) for part in (pixels, emit(op.exp(x)))]
    return op.reshape(emit(op.concat(parts, 1)), (2, 288 // row, row))


def transposed_vector(emit, x):
    return op.permute_dims(emit(op.nn.adaptive_avg_pool2d(x, (1, 1))), [0, 2, 3, 1])


REWRITES = {
    "expand_dims": (lambda emit, x: op.expand_dims(x, [1]), ["reshape"]),
    "squeeze": (lambda emit, x: op.squeeze(emit(op.strided_slice(x, [0], [0], [1]))), ["strided_slice", "reshape"]),
    "flatten": (lambda emit, x: op.flatten(x), ["reshape"]),
    "reshape chain": (many_reshapes, ["reshape", "exp"]),
    "reshape there and back": (there_and_back, ["exp"]),
    "rows of concat": (rows_of_concat, ["permute_dims", "exp", "reshape", "reshape", "concat"]),
    "permute of unit axes": (transposed_vector, ["nn.adaptive_avg_pool2d", "reshape"]),
    "split": (split_and_swap, ["strided_slice", "strided_slice", "concat"]),
    "uneven split": (split_unevenly, ["strided_slice", "nn.relu"]),
    "mean, keepdims": (lambda emit, x: op.mean(x, [2, 3], True), ["nn.adaptive_avg_pool2d"]),
    "mean, negative axes": (lambda emit, x: op.mean(x, [-1, -2]), ["nn.adaptive_avg_pool2d", "reshape"]),
    "mean of mean": (mean_of_mean, ["nn.adaptive_avg_pool2d", "reshape"]),
    "whole average": (lambda emit, x: avg_pool(x, (6, 6)), ["nn.adaptive_avg_pool2d"]),
    "pad of conv2d": (lambda emit, x: conv(emit(pad(x, 1, 2, 0, 3)), padding=1), ["nn.conv2d"]),
    "pad of pad of conv2d": (lambda emit, x: conv(emit(pad(emit(pad(x, 1, 0, 0, 1)), 0, 1, 1, 0))), ["nn.conv2d"]),
    "pad of avg_pool2d": (
        lambda emit, x: avg_pool(emit(pad(x, 1, 1, 1, 1)), (3, 3), count_include_pad=True),
        ["nn.avg_pool2d"],
    ),
    "HWIO weight": (
        lambda emit, x: op.nn.conv2d(x, const(3, 2, 4, 5), kernel_layout="HWIO"),
        ["nn.conv2d"],
    ),
    "subtract": (lambda emit, x: op.subtract(x, const(4, 1, 1)), ["add"]),
    "divide": (lambda emit, x: op.divide(x, const(4, 1, 1, low=1, high=2)), ["multiply"]),
    "constant on the left": (
        lambda emit, x: op.add(const(4, 1, 1), emit(op.multiply(scalar(2), x))),
        ["multiply", "add"],
    ),
    "maximum with 0": (lambda emit, x: op.maximum(scalar(0), x), ["nn.relu"]),
    "minimum of maximum": (lambda emit, x: op.minimum(emit(op.maximum(x, scalar(-0.5))), scalar(0.25)), ["clip"]),
    "maximum of minimum": (lambda emit, x: op.maximum(emit(op.minimum(scalar(0.25), x)), scalar(0)), ["clip"]),
    "clip of relu": (lambda emit, x: op.clip(emit(op.nn.relu(x)), -1.0, 0.5), ["clip"]),
    "disjoint limits": (lambda emit, x: op.clip(emit(op.clip(x, -1.0, 0.0)), 0.5, 0.75), ["clip"]),
    "clip without upper limit": (lambda emit, x: op.clip(x, 0, float(np.finfo("float32").max)), ["nn.relu"]),
    "clip without lower limit": (lambda emit, x: op.clip(x, float("-inf"), 0.5), ["minimum"]),
    "sum of stack": (lambda emit, x: op.sum(emit(op.stack([x, x, x], 0)), [0]), ["add", "add"]),
}


@pytest.mark.parametrize("kind", REWRITES)
def test_rewrites(kind):
    body, expected = REWRITES[kind]
    before = module(body, x=MAP)
    after = transformed(Canonicalize(), before)
    assert ops(after) == expected
    assert names(after)[-1] == "out"
    assert_same_numbers(before, after)


KEPT = {
    "mean over one axis": lambda emit, x: op.mean(x, [2], True),
    "mean over all": lambda emit, x: op.mean(x),
    "average of less than the map": lambda emit, x: avg_pool(x, (5, 6)),
    "average of the map with padding": lambda emit, x: avg_pool(x, (6, 6), padding=1),
    "pad of avg_pool2d": lambda emit, x: avg_pool(emit(pad(x, 1, 1, 1, 1)), (3, 3)),
    "pad of rounding avg_pool2d": lambda emit, x: avg_pool(
        emit(pad(x, 1, 1, 1, 1)), (3, 3), strides=2, ceil_mode=True, count_include_pad=True
    ),
    "pad of max_pool2d": lambda emit, x: op.nn.max_pool2d(emit(pad(x, 1, 1, 1, 1)), (3, 3)),
    "rows across parts": lambda emit, x: rows_of_concat(emit, x, row=32),
    "pad with one": lambda emit, x: conv(emit(pad(x, 1, 1, 1, 1, pad_value=1.0))),
    "reflected pad": lambda emit, x: conv(emit(pad(x, 1, 1, 1, 1, pad_mode="reflect"))),
    "pad of channels": lambda emit, x: op.nn.conv2d(emit(op.nn.pad(x, [0, 0, 0, 1, 0, 0, 0, 0])), const(4, 5, 3, 3)),
    "permute": lambda emit, x: op.permute_dims(x, [0, 2, 3, 1]),
    "silu": lambda emit, x: op.multiply(x, emit(op.sigmoid(x))),
    "divide by zero": lambda emit, x: op.divide(x, constant(np.zeros((1,), "float32"))),
    "constant divided": lambda emit, x: op.divide(scalar(1), x),
    "constant minus": lambda emit, x: op.subtract(scalar(1), x),
    "maximum of channels": lambda emit, x: op.maximum(x, const(4, 1, 1)),
    "relu and clip": lambda emit, x: [relu := emit(op.nn.relu(x)), op.clip(relu, 0, 6)][1:] + [op.exp(relu)],
    "crossed limits": lambda emit, x: op.minimum(emit(op.clip(x, 2.0, 1.0)), scalar(3)),
    "sum over another axis": lambda emit, x: op.sum(emit(op.stack([x, x], 0)), [1]),
}


@pytest.mark.parametrize("kind", KEPT)
def test_stays(kind):
    before = module(KEPT[kind], x=MAP)
    tvm.ir.assert_structural_equal(transformed(Canonicalize(), before), before)


def test_padding_is_added_side_by_side():
    after = Canonicalize()(module(REWRITES["pad of conv2d"][0], x=MAP))
    assert list(call_named(after, "nn.conv2d").attrs.padding) == [2, 1, 3, 4]  # top, left, bottom, right


def test_pad_that_others_read_stays_for_them():
    def body(emit, x):
        padded = emit(pad(x, 1, 1, 1, 1))
        return [conv(padded), op.nn.max_pool2d(padded, (3, 3))]

    before = module(body, x=MAP)
    after = transformed(Canonicalize(), before)
    assert sorted(ops(after)) == ["nn.conv2d", "nn.max_pool2d", "nn.pad"]
    assert_same_numbers(before, after)


def test_strides_dilation_and_groups_survive():
    def body(emit, x):
        return op.nn.conv2d(emit(pad(x, 2, 2, 2, 2)), const(8, 2, 3, 3), strides=(2, 1), dilation=(1, 2), groups=2)

    before = module(body, x=MAP)
    after = transformed(Canonicalize(), before)
    assert ops(after) == ["nn.conv2d"]
    assert_same_numbers(before, after)


def test_split_parts_keep_their_names():
    assert names(Canonicalize()(module(split_and_swap, x=MAP))) == ["part0", "part1", "out"]


def test_hwio_weight_is_stored_as_oihw():
    call = call_named(Canonicalize()(module(REWRITES["HWIO weight"][0], x=(1, 4, 6, 6))), "nn.conv2d")
    assert call.attrs.kernel_layout == "OIHW"
    assert shape_of(call.args[1]) == (5, 4, 3, 2)


def test_limits_of_a_merged_clip():
    call = call_named(Canonicalize()(module(REWRITES["minimum of maximum"][0], x=MAP)), "clip")
    assert [float(limit.value) for limit in call.args[1:]] == [-0.5, 0.25]


def test_divisor_is_inverted_in_float64():
    divisor = const_value(const(4, 1, 1, low=1, high=2))
    call = call_named(Canonicalize()(module(REWRITES["divide"][0], x=MAP)), "multiply")
    np.testing.assert_array_equal(const_value(call.args[1]), (1 / divisor.astype("float64")).astype("float32"))
