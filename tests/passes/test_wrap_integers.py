"""WrapIntegers: what selects integers selects reals between dequantize and quantize."""

import numpy as np
import pytest
from tvm import relax

from tests.passes.pass_testing import assert_unchanged, constant, module, ops, run, transformed
from tests.passes.qdq_testing import qdq
from tvm_int8.passes.dataflow import rebuild
from tvm_int8.passes.wrap_integers import WrapIntegers

op = relax.op
SELECTIONS = {
    "reshape": lambda x: op.reshape(x, (2, 36)),
    "permute_dims": lambda x: op.permute_dims(x, (0, 2, 3, 1)),
    "strided_slice": lambda x: op.strided_slice(x, [1, 3], [1, 0], [4, 3], [1, 2]),
    "take": lambda x: op.take(x, constant(np.array([3, 1, 1])), axis=1),
    "concat": lambda x: op.concat([x, x], axis=1),
    "nn.max_pool2d": lambda x: op.nn.max_pool2d(x, (2, 2), padding=(1, 1)),
    "image.resize2d": lambda x: op.image.resize2d(x, (6, 6), method="nearest_neighbor", rounding_method="floor"),
}


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("name", SELECTIONS)
def test_the_same_integers_are_selected(name, dtype):
    before = module(lambda emit, x: emit(SELECTIONS[name](x)), dtype=dtype, x=(2, 4, 3, 3))
    after = transformed(WrapIntegers(), before)
    assert ops(after)[-2:] == [name, "quantize"]
    info = np.iinfo(dtype)
    x = np.random.default_rng(0).integers(info.min, info.max + 1, (2, 4, 3, 3)).astype(dtype)
    (expected,), (actual,) = run(before, x), run(after, x)
    assert actual.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_a_bilinear_resize_rounds_towards_zero(dtype):
    def resized(x):
        return op.image.resize2d(x, (4, 4), method="linear", coordinate_transformation_mode="asymmetric")

    integers = transformed(WrapIntegers(), module(lambda emit, x: emit(resized(x)), dtype=dtype, x=(1, 1, 2, 2)))
    x = np.array([[[[5, 8], [-3, -8]]]]).astype(dtype)
    (real,) = run(module(lambda emit, x: emit(resized(x)), x=(1, 1, 2, 2)), x.astype(np.float32))
    (actual,) = run(integers, x)
    np.testing.assert_array_equal(actual, np.trunc(real))


def test_reals_stay():
    def body(emit, x):
        return qdq(emit, emit(op.nn.max_pool2d(qdq(emit, x))))

    before = rebuild(module(body, x=(1, 3, 4, 4)), lambda *_: None)
    assert_unchanged(before, transformed(WrapIntegers(), before))
