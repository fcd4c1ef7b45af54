"""Relax modules of a user's own."""

import numpy as np
import onnx
import pytest
import tvm
from tvm import relax
from tvm.relax import op
from tvm.relax.frontend.onnx import from_onnx

from tests.frontend.running import assert_canonical, bindings, calls, layer_names, one_node, op_counts, run_relax
from tvm_int8.errors import ModelError
from tvm_int8.frontend import load_model

RNG = np.random.default_rng(5)


def const(*shape, dtype="float32"):
    return relax.const(RNG.normal(size=shape).astype(dtype), dtype)


def build(body, *inputs, name="main", dtype="float32", blocks=True):
    """A module whose function binds what `body(builder, *params)` returns."""
    builder = relax.BlockBuilder()
    params = [relax.Var(f"in{i}", relax.TensorType(shape, dtype)) for i, shape in enumerate(inputs)]
    with builder.function(name, params):
        if blocks:
            with builder.dataflow():
                output = builder.emit_output(body(builder, *params))
        else:
            output = builder.emit(body(builder, *params))
        builder.emit_func_output(output)
    return builder.get()


def check(module, input_shapes=None, atol=1e-4):
    imported = load_model(module, input_shapes)
    assert_canonical(imported)
    feeds = [
        RNG.normal(size=[int(dim) for dim in parameter.ty.shape]).astype(str(parameter.ty.dtype))
        for parameter in imported["main"].params
    ]
    for result, wanted in zip(run_relax(imported, feeds), run_relax(module, feeds), strict=True):
        np.testing.assert_allclose(result, wanted, atol=atol, rtol=1e-4)
    return imported


def test_network_keeps_its_names():
    def body(builder, x):
        x = builder.emit(op.nn.conv2d(x, const(4, 3, 3, 3), padding=1), "conv1")
        x = builder.emit(op.add(const(1, 4, 1, 1), x), "conv1_bias")
        x = builder.emit(op.nn.relu(x), "relu1")
        x = builder.emit(op.mean(x, [2, 3], keepdims=True), "pool")
        x = builder.emit(op.nn.batch_flatten(x), "flat")
        return op.matmul(x, op.permute_dims(const(5, 4)))

    module = check(build(body, (2, 3, 8, 8)))
    assert op_counts(module) == {
        "nn.conv2d": 1,
        "add": 1,
        "nn.relu": 1,
        "nn.adaptive_avg_pool2d": 1,
        "reshape": 1,
        "matmul": 1,
    }
    assert {"conv1", "conv1_bias", "relu1", "pool"} <= set(layer_names(module))
    assert list(module["main"].attrs["input_names"]) == ["in0"]
    assert list(module["main"].attrs["output_names"]) == ["output"]


def test_batch_norm_and_dropout():
    def body(builder, x):
        gamma, beta, mean = const(3), const(3), const(3)
        var = relax.const(RNG.uniform(0.5, 1.5, 3).astype("float32"))
        x = builder.emit(op.nn.batch_norm(x, gamma, beta, mean, var, axis=1, training=False), "bn")
        x = builder.emit(relax.TupleGetItem(x, 0), "bn_out")
        x = builder.emit(op.nn.dropout(x, 0.5), "drop")
        return relax.TupleGetItem(x, 0)

    module = load_model(build(body, (1, 3, 4, 4)))
    assert op_counts(module) == {"nn.batch_norm": 1}
    assert [b.var.name for b in bindings(module)] == ["bn", "bn_out"]


def test_one_dimensional_operators():
    def body(builder, x):
        x = builder.emit(op.nn.conv1d(x, const(4, 3, 3), padding=1), "conv")
        x = builder.emit(op.nn.relu(x), "relu")
        x = builder.emit(op.nn.max_pool1d(x, 2, 2), "pool")
        x = builder.emit(op.nn.conv1d_transpose(x, const(4, 2, 2), strides=2), "up")
        x = builder.emit(op.nn.avg_pool1d(x, 2, 2), "avg")
        return op.nn.adaptive_avg_pool1d(x, 1)

    module = check(build(body, (2, 3, 8)))
    assert op_counts(module) == {
        "reshape": 2,
        "nn.conv2d": 1,
        "nn.relu": 1,
        "nn.max_pool2d": 1,
        "nn.conv2d_transpose": 1,
        "nn.avg_pool2d": 1,
        "nn.adaptive_avg_pool2d": 1,
    }


def test_channels_last_convolution():
    def body(builder, x):
        return op.nn.conv2d(x, const(4, 3, 3, 3), padding=1, data_layout="NHWC", kernel_layout="OHWI")

    module = check(build(body, (1, 8, 8, 3)))
    assert str(calls(module, "nn.conv2d")[0].attrs.data_layout) == "NCHW"
    assert isinstance(calls(module, "nn.conv2d")[0].args[1], tvm.ir.GenericConst)


def test_padding_and_activation_idioms():
    def body(builder, x):
        x = builder.emit(op.nn.pad(x, [0, 0, 0, 0, 1, 1, 1, 1]), "pad")
        x = builder.emit(op.nn.conv2d(x, const(4, 3, 3, 3)), "conv")
        x = builder.emit(op.minimum(op.nn.relu(x), relax.const(6.0)), "relu6")
        x = builder.emit(op.multiply(op.sigmoid(x), x), "silu")
        x = builder.emit(op.maximum(x, relax.const(0.0)), "relu")
        x = builder.emit(op.nn.prelu(x, relax.const(np.asarray([0.1], "float32"))), "prelu")
        return op.image.resize2d(x, (16, 16), method="nearest_neighbor")

    module = check(build(body, (1, 3, 8, 8)))
    assert op_counts(module) == {
        "nn.conv2d": 1,
        "clip": 1,
        "nn.silu": 1,
        "nn.relu": 1,
        "nn.leakyrelu": 1,
        "image.resize2d": 1,
    }


def test_symbolic_batch():
    batch = tvm.tirx.Var("n", "int64")
    module = build(lambda builder, x: op.reshape(op.nn.relu(x), (batch, 12)), (batch, 3, 4))
    with pytest.raises(ModelError, match=r"input 'in0': dimension 0 \('n'\) is symbolic.*input_shapes"):
        load_model(module)
    bound = load_model(module, {"in0": (5, 3, 4)})
    assert [int(dim) for dim in bound["main"].ret_ty.shape] == [5, 12]
    with pytest.raises(ModelError, match="names 'other'"):
        load_model(module, {"other": (5, 3, 4)})


def test_params_attribute_is_bound():
    module = build(lambda builder, x, w: op.nn.conv2d(x, w), (1, 3, 5, 5), (4, 3, 3, 3))
    weight = RNG.normal(size=(4, 3, 3, 3)).astype("float32")
    module["main"] = module["main"].with_attrs({"num_input": 1, "params": [tvm.runtime.tensor(weight)]})
    imported = load_model(module)
    assert len(imported["main"].params) == 1
    np.testing.assert_array_equal(calls(imported, "nn.conv2d")[0].args[1].value.numpy(), weight)


def test_calls_of_other_functions_are_inlined():
    helper = build(lambda builder, x: op.nn.relu(x), (2, 3), name="helper")
    builder = relax.BlockBuilder(helper)
    x = relax.Var("x", relax.TensorType((2, 3), "float32"))
    with builder.function("main", [x]):
        y = builder.emit(relax.Call(helper.get_global_var("helper"), [x]))
        builder.emit_func_output(builder.emit(op.add(y, y)))
    assert op_counts(check(builder.get())) == {"nn.relu": 1, "add": 1}


def test_only_function_of_another_name_and_plain_blocks():
    module = build(lambda builder, x: op.tanh(x), (2, 3), name="predict", blocks=False)
    assert op_counts(load_model(module)) == {"tanh": 1}
    assert op_counts(load_model(module["predict"])) == {"tanh": 1}


def test_float16():
    module = build(
        lambda builder, x: op.nn.conv2d(x, const(4, 3, 3, 3, dtype="float16")), (1, 3, 5, 5), dtype="float16"
    )
    imported = load_model(module)
    assert str(imported["main"].params[0].ty.dtype) == str(imported["main"].ret_ty.dtype) == "float32"


def test_quantised_weight_stays_quantised():
    def body(builder, x):
        q = relax.const(RNG.integers(-128, 128, (4, 3, 3, 3)).astype("int8"))
        scale, zero = relax.const(RNG.uniform(0.01, 0.02, 4).astype("float32")), relax.const(np.zeros(4, "int8"))
        return op.nn.conv2d(x, op.dequantize(q, scale, zero, axis=0))

    assert op_counts(check(build(body, (1, 3, 5, 5)))) == {"dequantize": 1, "nn.conv2d": 1}


def test_what_has_no_place():
    lowered = relax.transform.LegalizeOps()(build(lambda builder, x: op.tanh(x), (2, 3)))
    with pytest.raises(ModelError, match="before it is lowered"):
        load_model(lowered)
    with pytest.raises(ModelError, match="no Relax function"):
        load_model(tvm.IRModule())
    two = tvm.IRModule({name: build(lambda b, x: op.tanh(x), (2, 3))["main"] for name in ("a", "b")})
    with pytest.raises(ModelError, match="a function 'main'"):
        load_model(two)


def test_tvms_own_lrn():
    model = onnx.shape_inference.infer_shapes(one_node("LRN", (1, 6, 4, 4), size=3, alpha=0.2))
    imported = from_onnx(model)
    assert "nn.avg_pool3d" not in op_counts(check(imported))
