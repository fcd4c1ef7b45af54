"""FoldConstants: what is known is computed, what does nothing goes, what is quantised stays."""

import numpy as np
import pytest
from tvm import relax
from tvm.relax import op

from tests.passes.pass_testing import assert_same_numbers, const, f32, module, names, ops, transformed
from tvm_int8.passes.constant_evaluation import _NUMPY, _compiled, evaluate
from tvm_int8.passes.dataflow import const_value, constant, op_name, shape_of
from tvm_int8.passes.fold_constants import FoldConstants


def i64(*values):
    return constant(np.array(values, "int64"))


def test_computed_weights_become_constants():
    def body(emit, x):
        weight = emit(op.permute_dims(emit(op.reshape(const(8, 3), (8, 3))), [1, 0]))
        scale = emit(op.sqrt(emit(op.add(const(8, low=0, high=2), constant(np.float32(1e-3))))))
        return op.multiply(emit(op.matmul(x, weight)), scale)

    before = module(body, x=(2, 3))
    after = transformed(FoldConstants(), before)
    assert ops(after) == ["matmul", "multiply"]
    assert_same_numbers(before, after)


IDLE = {
    "reshape": lambda x: op.reshape(x, (2, 3, 4, 4)),
    "broadcast_to": lambda x: op.broadcast_to(x, (2, 3, 4, 4)),
    "permute_dims": lambda x: op.permute_dims(x, [0, 1, 2, 3]),
    "pad": lambda x: op.nn.pad(x, [0] * 8),
    "multiply": lambda x: op.multiply(constant(np.ones((3, 1, 1), "float32")), x),
    "divide": lambda x: op.divide(x, constant(np.float32(1))),
    "add": lambda x: op.add(x, constant(np.zeros((1, 3, 1, 1), "float32"))),
    "subtract": lambda x: op.subtract(x, constant(np.float32(0))),
    "astype": lambda x: op.astype(x, "float32"),
    "concat": lambda x: op.concat([x], 1),
    "strided_slice": lambda x: op.strided_slice(x, [1], [0], [3]),
    "dropout": lambda x: relax.TupleGetItem(op.nn.dropout(x, 0.4), 0),
}


@pytest.mark.parametrize("name", IDLE)
def test_idle_operator_goes(name):
    before = module(lambda emit, x: op.nn.relu(emit(IDLE[name](emit(op.exp(x), "e")))), x=(2, 3, 4, 4))
    assert ops(transformed(FoldConstants(), before)) == ["exp", "nn.relu"]


BUSY = {
    "broadcasting multiply": lambda x: op.multiply(x, constant(np.ones((2, 1, 1, 1), "float32"))),
    "one divided": lambda x: op.divide(constant(np.float32(1)), x),
    "subtracted from zero": lambda x: op.subtract(constant(np.float32(0)), x),
    "almost one": lambda x: op.multiply(x, constant(np.array([1, 1, 2], "float32").reshape(3, 1, 1))),
    "reversed": lambda x: op.strided_slice(x, [2], [3], [-5], [-1]),
    "square permute": lambda x: op.permute_dims(x, [0, 1, 3, 2]),
    "cast": lambda x: op.astype(x, "float16"),
    "input alone": lambda x: op.nn.relu(x),
}


@pytest.mark.parametrize("name", BUSY)
def test_operator_with_an_effect_stays(name):
    before = module(lambda emit, x: BUSY[name](x), x=(1, 3, 4, 4))
    after = transformed(FoldConstants(), before)
    assert ops(after) == ops(before)


def test_quantised_constants_stay_quantised():
    def body(emit, x):
        scale, zero = const(4, low=0.1, high=1), constant(np.zeros(4, "int8"))
        weight = constant(np.arange(-54, 54).reshape(4, 3, 3, 3).astype("int8"))
        quantised = emit(op.quantize(const(4, 3, 3, 3), scale, zero, 0, "int8"))
        return [
            op.nn.conv2d(x, emit(op.dequantize(weight, scale, zero, 0)), padding=1),
            op.nn.conv2d(x, emit(op.dequantize(quantised, scale, zero, 0)), padding=1),
        ]

    after = transformed(FoldConstants(), module(body, x=(1, 3, 4, 4)))
    assert sorted(ops(after)) == ["dequantize", "dequantize", "nn.conv2d", "nn.conv2d", "quantize"]


def test_shape_arithmetic_on_static_shapes():
    def body(emit, x):
        shape = emit(op.shape_to_tensor(emit(op.shape_of(x))))
        return op.multiply(x, emit(op.astype(emit(op.take(shape, i64(1), 0)), "float32")))

    before = module(body, x=(1, 3, 4, 4))
    after = transformed(FoldConstants(), before)
    assert ops(after) == ["multiply"]
    assert_same_numbers(before, after)


def test_constant_output_and_names():
    before = module(lambda emit, x: [emit(op.exp(const(2, 2)), "c"), op.nn.relu(emit(op.exp(x), "e"))], x=(2, 2))
    after = transformed(FoldConstants(), before)
    assert list(zip(names(after), ops(after), strict=True)) == [
        ("e", "exp"),
        ("out", "GenericConst"),
        ("out1", "nn.relu"),
    ]
    assert_same_numbers(before, after)


X, Y = f32(2, 3, 4), f32(2, 3, 4, seed=9, low=0.5, high=2)
CALLS = {
    "binary": [
        f(constant(X), constant(Y)) for f in (op.add, op.subtract, op.multiply, op.divide, op.maximum, op.minimum)
    ],
    "compare": [f(constant(X), constant(Y)) for f in (op.equal, op.less, op.greater_equal)],
    "power": [op.power(constant(Y), constant(X))],
    "unary": [
        f(constant(Y)) for f in (op.sqrt, op.rsqrt, op.exp, op.log, op.tanh, op.sigmoid, op.abs, op.negative, op.square)
    ],
    "rounding": [f(constant(X * 9)) for f in (op.floor, op.ceil, op.sign)],
    "integers": [f(i64(-7, 7, 9), i64(2, -2, 4)) for f in (op.divide, op.multiply, op.maximum)],
    "reductions": [f(constant(X), [1], True) for f in (op.sum, op.mean, op.max, op.min, op.prod)]
    + [op.sum(constant(X))],
    "shape": [
        op.reshape(constant(X), (6, 4)),
        op.flatten(constant(X)),
        op.expand_dims(constant(X), [0, 2]),
        op.squeeze(constant(X[:1]), [0]),
        op.squeeze(constant(X[:1])),
        op.permute_dims(constant(X)),
        op.permute_dims(constant(X), [2, 0, 1]),
        op.broadcast_to(constant(X[:, :1]), (2, 3, 4)),
    ],
    "join": [op.concat([constant(X), constant(Y)], -1), op.stack([constant(X), constant(Y)], 1)],
    "split": [op.split(constant(X), 2, 2), op.split(constant(X), 2, 1), op.split(constant(X), [1, 3], -1)],
    "select": [
        op.strided_slice(constant(X), [1, 2], [-2, 0], [9, 4], [1, 2]),
        op.strided_slice(constant(X), [1], [2], [-9], [-1]),
        op.take(constant(X), i64(2, 0), 1),
        op.gather_elements(constant(X), constant(np.array([[[1, 0]]], "int64")), 2),
        op.where(constant(X > 0), constant(X), constant(Y)),
        op.flip(constant(X), 1),
        op.tile(constant(X), (2, 1, 3)),
        op.clip(constant(X), -0.5, 0.5),
    ],
    "make": [
        op.full((2, 2), constant(np.float32(3)), "float32"),
        op.zeros((2,), "int64"),
        op.ones((2,), "float32"),
        op.zeros_like(constant(X)),
        op.full_like(constant(X), constant(np.float32(2))),
        op.arange(1, 9, 2),
    ],
    "cast": [op.astype(constant(X * 9), "int32"), op.astype(i64(1, 0), "bool"), op.astype(i64(1, 2), "float32")],
    "matmul": [op.matmul(constant(X), constant(Y.transpose(0, 2, 1)))],
}


@pytest.mark.parametrize("kind", CALLS)
def test_numpy_agrees_with_tvm(kind):
    for raw in CALLS[kind]:
        call = relax.BlockBuilder().normalize(raw)
        assert op_name(call) in _NUMPY
        result, expected = evaluate(call), _compiled(call)
        fields = list(result.fields) if isinstance(result, relax.Tuple) else [result]
        for field, array in zip(fields, expected, strict=True):
            np.testing.assert_allclose(const_value(field), array, rtol=1e-5, atol=1e-6)
            assert const_value(field).dtype == array.dtype
            assert shape_of(field) == array.shape


def test_operators_numpy_does_not_know_are_compiled():
    call = relax.BlockBuilder().normalize(op.erf(constant(X)))
    assert op_name(call) not in _NUMPY
    assert const_value(evaluate(call)).shape == X.shape


def test_unknown_operand_is_not_evaluated():
    call = relax.BlockBuilder().normalize(op.add(relax.Var("x", relax.TensorType((2,), "float32")), const(2)))
    assert evaluate(call) is None
