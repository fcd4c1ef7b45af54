"""The view of a function and its rebuilding."""

import time

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.relax import op

from tests.passes.pass_testing import assert_same_numbers, assert_unchanged, const, f32, module, names, ops, run
from tvm_int8.errors import ModelError
from tvm_int8.passes.dataflow import Dataflow, const_value, constant, dtype_of, op_name, rebuild, shape_of


def keep(binding, value, new):
    return None


def residual(emit, x):
    a = emit(op.nn.relu(x), "a")
    b = emit(op.multiply(a, a), "b")
    emit(op.exp(b), "dead")
    return op.add(b, a)


def test_view_knows_producers_consumers_and_outputs():
    flow = Dataflow(module(residual, x=(1, 2, 4, 4)))
    a, b, _dead, out = (binding.var for binding in flow.bindings)
    assert [user.var.name for user in flow.consumers[a]] == ["b", "b", "out"]
    assert flow.producer[b].var.same_as(b)
    assert op_name(flow.value(b)) == "multiply"
    assert flow.value(flow.params[0]).same_as(flow.params[0])
    assert flow.is_output(out)
    assert not flow.is_output(a)
    assert flow.only_consumer(a) is None
    assert flow.only_consumer(flow.params[0]).var.same_as(a)
    assert flow.only_consumer(out) is None


def test_shapes_dtypes_and_constants_are_plain_python_and_numpy():
    flow = Dataflow(module(residual, x=(1, 2, 4, 4)))
    assert shape_of(flow.params[0]) == (1, 2, 4, 4)
    assert dtype_of(flow.params[0]) == "float32"
    assert const_value(flow.params[0]) is None
    for dtype in ("int64", "float64", "uint8", "bool", "float16"):
        array = np.arange(6).reshape(2, 3).astype(dtype)
        expr = constant(array)
        assert dtype_of(expr) == dtype
        np.testing.assert_array_equal(const_value(expr), array)
    assert shape_of(constant(np.float32(3))) == ()
    with pytest.raises(ValueError, match="read-only"):
        const_value(expr)[0] = 1


def test_symbolic_shape_is_refused():
    symbolic = relax.Var("x", relax.TensorType((tvm.tirx.Var("n", "int64"), 3), "float32"))
    with pytest.raises(ModelError, match="static shape"):
        shape_of(symbolic)


def test_rebuild_without_changes_only_drops_dead_bindings():
    before = module(residual, layer_names={"a": "layer/a"}, x=(1, 2, 4, 4))
    after = rebuild(before, keep)
    assert names(after) == ["a", "b", "out"]
    assert dict(after["main"].attrs["layer_names"]) == {"a": "layer/a"}
    assert list(after["main"].attrs["input_names"]) == ["x"]
    assert_unchanged(after, rebuild(after, keep))
    assert_same_numbers(before, after)


def test_replacement_keeps_the_name_and_nested_calls_get_bindings():
    before = module(residual, layer_names={"a": "layer/a"}, x=(1, 2, 4, 4))

    def double_relu(binding, value, new):
        if op_name(value) == "nn.relu":
            return op.multiply(op.nn.relu(value.args[0]), constant(np.float32(2)))
        return None

    after = rebuild(before, double_relu)
    assert list(zip(names(after), ops(after), strict=True)) == [
        ("a_relu", "nn.relu"),
        ("a", "multiply"),
        ("b", "multiply"),
        ("out", "add"),
    ]
    assert dict(after["main"].attrs["layer_names"]) == {"a": "layer/a", "a_relu": "layer/a"}


def test_added_names_are_unique():
    before = module(lambda emit, x: op.exp(emit(op.nn.relu(x), "t")), x=(2, 3))

    def add_three(binding, value, new):
        return None if op_name(value) == "nn.relu" else op.exp(new.emit(op.abs(new.emit(value, "t")), "t"))

    assert names(rebuild(before, add_three)) == ["t", "t_1", "t_2", "out"]


def test_alias_of_an_output_promotes_what_it_stands_for():
    before = module(lambda emit, x: op.reshape(emit(op.nn.relu(x), "a"), (2, 3)), x=(2, 3))
    after = rebuild(before, lambda binding, value, new: value.args[0] if op_name(value) == "reshape" else None)
    assert names(after) == ["a"]
    assert not isinstance(Dataflow(after).outputs[0], relax.DataflowVar)
    assert_same_numbers(before, after)


@pytest.mark.parametrize("leaf", ["parameter", "constant"])
def test_output_that_needs_no_computation_stays_bound(leaf):
    before = module(lambda emit, x: op.nn.relu(x), x=(2, 3))
    result = constant(f32(2, 3))
    after = rebuild(before, lambda binding, value, new: value.args[0] if leaf == "parameter" else result)
    assert names(after) == ["out"]
    assert_unchanged(after, rebuild(after, keep))
    x = f32(2, 3, seed=5)
    np.testing.assert_array_equal(run(after, x)[0], x if leaf == "parameter" else const_value(result))


def test_bound_tuples_are_written_out():
    def body(emit, x, y):
        pair = emit(relax.Tuple([x, y]), "pair")
        first = emit(relax.TupleGetItem(pair, 0), "first")
        return [op.concat(pair, 0), op.nn.relu(first)]

    before = module(body, x=(2, 3), y=(2, 3))
    after = rebuild(before, keep)
    assert ops(after) == ["concat", "nn.relu"]
    assert len(Dataflow(after).outputs) == 2
    assert_same_numbers(before, after)


def test_type_changes_reach_the_consumers():
    before = module(lambda emit, x: op.nn.relu(emit(op.exp(x), "a")), x=(1, 2, 4, 4))

    def halve(binding, value, new):
        return op.strided_slice(value.args[0], [2], [0], [2]) if op_name(value) == "exp" else None

    (out,) = Dataflow(rebuild(before, halve)).outputs
    assert shape_of(out) == (1, 2, 2, 4)


def test_other_functions_and_module_attributes_survive():
    @tvm.script.ir_module
    class Two:
        @tvm.script.relax.function
        def main(x: tvm.script.relax.Tensor((2,), "float32")) -> tvm.script.relax.Tensor((2,), "float32"):
            with tvm.script.relax.dataflow():
                y = tvm.script.relax.exp(x)
                tvm.script.relax.output(y)
            return y

        @tvm.script.relax.function
        def other(x: tvm.script.relax.Tensor((2,), "float32")) -> tvm.script.relax.Tensor((2,), "float32"):
            return x

    before = Two.with_attr("note", "kept")
    assert_unchanged(before, rebuild(before, keep))


def test_a_network_the_size_of_resnet152_takes_well_under_a_second():
    def body(emit, x):
        for index in range(250):
            y = emit(op.nn.conv2d(x, weight, padding=1), f"conv{index}")
            x = emit(op.nn.relu(emit(op.add(x, y), f"add{index}")), f"relu{index}")
        return op.exp(x)

    weight = const(2, 2, 3, 3)
    before = module(body, x=(1, 2, 4, 4))
    seconds = []
    for _ in range(3):
        start = time.process_time()
        Dataflow(before)
        rebuild(before, keep)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 1.0
