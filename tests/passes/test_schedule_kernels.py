"""ScheduleKernels: no order is left, equal orders share code, and the code computes what was ordered."""

import json

import numpy as np
import pytest
import tvm
from tvm import relax, tirx

from tests.passes.pass_testing import const, module, run
from tests.passes.qdq_testing import int8_weight, ordered, orders, qdq, random_inputs
from tests.schedules.kernel_testing import CASCADELAKE, SAPPHIRERAPIDS, ZNVER4
from tvm_int8.build import generate_code
from tvm_int8.packed_weights import PackedWeight
from tvm_int8.passes.assign_layouts import AssignLayouts
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.expressions import op_name
from tvm_int8.passes.schedule_kernels import PACKED_WEIGHTS, ROWS, ScheduleKernels
from tvm_int8.reference.network import run_network

op = relax.op


def conv(emit, x, seed, name, bias=1.0):
    weight = int8_weight(emit, 20, x.ty.shape[1].value, 3, 3, scale=0.005, seed=seed)
    y = emit(op.nn.conv2d(x, weight, padding=1), name)
    return qdq(emit, emit(op.nn.relu(emit(op.add(y, const(1, 20, 1, 1, seed=seed, low=-bias, high=bias))))), 0.05, 0)


def network(emit, x):
    y = conv(emit, qdq(emit, x), 1, "first")
    return conv(emit, conv(emit, y, 2, "second"), 3, "third")


@pytest.fixture(scope="module")
def placed():
    before = module(network, {name: f"/{name}/conv" for name in ("first", "second", "third")}, x=(1, 20, 9, 9))
    return AssignLayouts()(ordered(before))


def functions(mod):
    return {var.name_hint: func for var, func in mod.functions.items() if isinstance(func, tirx.PrimFunc)}


def called(mod):
    return [b.value.args[0].name_hint for b in Dataflow(mod).bindings if op_name(b.value) == "call_tir"]


def test_every_order_becomes_a_call(placed):
    text = placed.script()
    after = ScheduleKernels(ZNVER4)(placed)
    assert placed.script() == text
    assert orders(after) == []
    assert len(called(after)) == len(orders(placed))
    assert set(called(after)) == set(functions(after))
    relax.analysis.well_formed(after)


def test_equal_orders_share_a_function(placed):
    after = ScheduleKernels(ZNVER4)(placed)
    first, second, third = [name for name in called(after) if name.startswith("conv2d")]
    assert second == third  # weights and biases are arguments
    assert first != second  # another zero point


def test_equal_orders_with_constants_of_another_range_do_not():
    """Where no value can exceed int32, the code need not clamp it; that depends on constants."""

    def two(emit, x):
        y = conv(emit, qdq(emit, x, 0.05, 0), 2, "small", bias=1e6)
        return conv(emit, y, 3, "large", bias=1e9)

    before = AssignLayouts()(ordered(module(two, x=(1, 20, 9, 9))))
    small, large = (name for name in called(ScheduleKernels(CASCADELAKE)(before)) if name.startswith("conv2d"))
    assert small != large


def test_functions_are_named_and_marked(placed):
    for name, func in functions(ScheduleKernels(ZNVER4)(placed)).items():
        assert str(func.attrs["global_symbol"]) == name
        assert name.startswith(str(func.attrs["tvm_int8.kernel"]))
        assert name.isidentifier()


def test_rows_say_what_each_call_is(placed):
    after = ScheduleKernels(ZNVER4)(placed)
    rows = json.loads(after.attrs["tvm_int8.kernels"])
    found = [rows[b.var.name] for b in Dataflow(after).bindings if b.var.name in rows]
    assert [row["function"] for row in found] == called(after)
    layers = [row for row in found if row["op"] == "Conv2d"]
    assert [row["layer"] for row in layers] == ["/first/conv", "/second/conv", "/third/conv"]
    assert {row["precision"] for row in layers} == {"int8"}
    assert {row["macs"] for row in layers} == {20 * 20 * 9 * 9 * 9}
    assert [row["stored"][1] for row in layers] == [[0], [0], [0]]
    assert all(row["bytes"] > 0 for row in found)


@pytest.mark.parametrize("cpu", [CASCADELAKE, SAPPHIRERAPIDS], ids=lambda cpu: cpu.name)
def test_weights_are_packed_for_the_file(placed, cpu):
    after = ScheduleKernels(cpu)(placed)
    packed = {
        name: PackedWeight.from_bytes(data.numpy().tobytes()) for name, data in after.attrs[PACKED_WEIGHTS].items()
    }
    rows = json.loads(after.attrs[ROWS])
    assert {name for name, row in rows.items() if row["weight_bits"]} == set(packed)
    assert len(packed) == 3
    for binding in Dataflow(after).bindings:
        if binding.var.name in packed:
            weight = packed[binding.var.name]
            arrays = [arg.value.numpy() for arg in binding.value.args[1] if hasattr(arg, "value")]
            assert weight.expanded().tobytes() == arrays[0].tobytes()
            assert (weight.bits, weight.count) == (rows[binding.var.name]["weight_bits"], 20 * 20 * 9)


def test_weights_of_other_shapes_may_share_a_function_and_are_packed_as_they_are():
    """24 and 32 channels fill the same vectors; where nothing is padded, nothing is packed."""

    def three(emit, x):
        for seed, outputs in enumerate((32, 24, 32, 24)):
            weight = int8_weight(emit, outputs, x.ty.shape[1].value, 3, 3, scale=0.005, seed=seed)
            x = qdq(emit, emit(op.nn.conv2d(x if seed else qdq(emit, x), weight, padding=1)), 0.05, 128)
        return x

    after = ScheduleKernels(CASCADELAKE)(AssignLayouts()(ordered(module(three, x=(1, 32, 9, 9)))))
    packed = after.attrs[PACKED_WEIGHTS]
    calls = [b for b in Dataflow(after).bindings if b.var.name in packed]
    assert len(calls) == 3 and len({b.value.args[0].name_hint for b in calls}) == 1
    for binding in calls:
        weight = PackedWeight.from_bytes(packed[binding.var.name].numpy().tobytes())
        arrays = [arg.value.numpy() for arg in binding.value.args[1] if hasattr(arg, "value")]
        assert weight.expanded().tobytes() == arrays[0].tobytes()


@pytest.mark.isa("avx512vnni")
@pytest.mark.parametrize(
    "cpu",
    [
        pytest.param(ZNVER4, id="znver4", marks=pytest.mark.isa("sse4a", "avx512_bf16")),
        pytest.param(CASCADELAKE, id="cascadelake"),
        pytest.param(SAPPHIRERAPIDS, id="sapphirerapids", marks=pytest.mark.isa("amx_int8")),
    ],
)
def test_the_code_computes_what_was_ordered(placed, cpu):
    before = ordered(module(network, x=(1, 20, 9, 9)))
    inputs = random_inputs(before)
    after = ScheduleKernels(cpu)(placed)
    executable, _ = generate_code(after, tvm.target.Target({"kind": "llvm", "mcpu": cpu.name}))
    result = relax.VirtualMachine(executable, tvm.cpu())["main"](*map(tvm.runtime.tensor, inputs))
    (expected,) = run_network(before, *inputs)
    np.testing.assert_array_equal(result.numpy(), expected)


def test_what_is_no_order_stays():
    before = module(lambda emit, x: emit(op.nn.softmax(x)), x=(1, 20))
    after = ScheduleKernels(ZNVER4)(before)
    assert functions(after) == {}
    np.testing.assert_array_equal(run(after, *random_inputs(before)), run(before, *random_inputs(before)))
