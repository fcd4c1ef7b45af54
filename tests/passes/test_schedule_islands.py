"""ScheduleIslands: what is fused, what is left alone; no function stays without loops for threads and vectors."""

import numpy as np
import pytest
import tvm
from tvm import relax, tirx
from tvm.relax import op
from tvm.tirx.script import builder as T

from tests.passes.pass_testing import const, f32, module, names, run, transformed
from tvm_int8.build import generate_code
from tvm_int8.passes import schedule_islands
from tvm_int8.passes.expressions import shape_of
from tvm_int8.passes.schedule_islands import KERNEL, ScheduleIslands, is_island
from tvm_int8.schedules.cpu import Cpu
from tvm_int8.schedules.islands import ISLAND, UNSCHEDULED
from tvm_int8.schedules.vector import KernelBuilder

CPU = Cpu("x86-64", "none", 256, 16, threads=2)


def legal(body, **inputs) -> tvm.IRModule:
    return relax.transform.RewriteDataflowReshape()(relax.transform.LegalizeOps()(module(body, **inputs)))


def functions(mod: tvm.IRModule) -> dict[str, tirx.PrimFunc]:
    return {v.name_hint: func for v, func in mod.functions.items() if isinstance(func, tirx.PrimFunc)}


def execute(mod: tvm.IRModule, *inputs: np.ndarray) -> list[np.ndarray]:
    """Outputs of a scheduled module; TVM's default pipeline looks for blocks, which scheduled functions lack."""
    executable, _ = generate_code(mod, tvm.target.Target({"kind": "llvm"}))
    result = relax.VirtualMachine(executable, tvm.cpu())["main"](*map(tvm.runtime.tensor, inputs))
    return [item.numpy() for item in ([result] if isinstance(result, tvm.runtime.Tensor) else result)]


def assert_same_numbers(before: tvm.IRModule, after: tvm.IRModule, tolerance: float = 2e-5) -> None:
    inputs = [f32(*shape_of(p), seed=i, low=0.1) for i, p in enumerate(before["main"].params)]
    for expected, found in zip(run(before, *inputs), execute(after, *inputs), strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


def scheduled(body, **inputs) -> tvm.IRModule:
    """The module after the pass: every function scheduled, the numbers those of TVM alone."""
    before = legal(body, **inputs)
    after = transformed(ScheduleIslands(CPU), before)
    for func in functions(after).values():
        assert ISLAND in func.attrs
        assert UNSCHEDULED not in func.attrs
        assert "T.parallel" in func.script()
        assert "T.vectorized" in func.script()
    assert_same_numbers(before, after)
    return after


def lrn(emit, x):
    square = emit(op.nn.pad(op.multiply(x, x), [0, 0, 2, 2, 0, 0, 0, 0]), "square")
    channels = int(x.ty.shape[1])
    total = op.strided_slice(square, [1], [0], [channels])
    for i in range(1, 5):
        total = emit(op.add(total, op.strided_slice(square, [1], [i], [i + channels])), "total")
    return emit(op.divide(x, op.power(op.add(op.multiply(total, const(1)), relax.const(1.0)), relax.const(0.75))), "y")


def normalize(emit, x, axes=(-1,)):
    centred = emit(op.subtract(x, op.mean(x, list(axes), keepdims=True)), "centred")
    variance = emit(op.mean(op.multiply(centred, centred), list(axes), keepdims=True), "variance")
    return emit(op.divide(centred, op.sqrt(op.add(variance, relax.const(1e-5)))), "normalized")


def attention(emit, q, k, v):
    scores = emit(op.matmul(q, op.permute_dims(k, [0, 2, 1])), "scores")
    weights = emit(op.nn.softmax(op.multiply(scores, relax.const(0.125)), -1), "weights")
    return emit(op.matmul(weights, v), "context")


CHAINS = {
    "lrn": (lrn, {"x": (1, 24, 13, 13)}),
    "layer_norm": (normalize, {"x": (1, 37, 96)}),
    "layer_norm_large": (normalize, {"x": (4, 197, 384)}),
    "instance_norm": (lambda emit, x: op.nn.relu(normalize(emit, x, (2, 3))), {"x": (2, 16, 33, 35)}),
    "attention": (attention, {"q": (6, 50, 64), "k": (6, 50, 64), "v": (6, 50, 64)}),
    "l2_norm": (
        lambda emit, x: op.divide(x, op.sqrt(op.sum(op.multiply(x, x), [1], keepdims=True))),
        {"x": (1, 64, 9, 9)},
    ),
    "softmax_of_channels": (lambda emit, x: op.nn.softmax(op.exp(x), 1), {"x": (1, 21, 65, 66)}),
    "argmax_of_the_first_axis": (lambda emit, x: op.astype(op.argmax(x, 0), "float32"), {"x": (21, 20_001)}),
    "softmax_of_everything": (lambda emit, x: op.negative(op.nn.softmax(x, 0)), {"x": (100_001,)}),
}


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_a_chain_becomes_one_function(chain):
    body, inputs = chain
    after = scheduled(body, **inputs)
    assert len(functions(after)) == 1
    assert len(names(after)) == 1


def test_names():
    after = scheduled(lambda emit, x: emit(op.exp(emit(op.multiply(x, x), "square")), "layer"), x=(3, 50))
    assert list(functions(after)) == ["multiply_exp"]
    assert names(after) == ["layer"]
    alone = scheduled(lambda emit, x: emit(op.nn.softmax(x, -1), "probabilities"), x=(3, 50))
    assert list(functions(alone)) == ["softmax"]


def test_calls_of_one_function_keep_inputs_of_their_own():
    """Two of one shape become one function of TVM's, whose parameters are then the same in both steps."""

    def body(emit, x, y, z):
        largest = emit(op.maximum(emit(op.maximum(x, y), "first"), z), "second")
        whole = emit(op.astype(largest, "int32"), "whole")
        return emit(op.power(op.astype(whole, "float32"), op.astype(op.astype(z, "int32"), "float32")), "power")

    after = scheduled(body, x=(30,), y=(30,), z=(30,))
    assert len(functions(after)) == 1


def test_functions_with_room_of_their_own_can_come_twice():
    def body(emit, x, y):
        return emit(op.nn.softmax(emit(op.multiply(emit(op.nn.softmax(x, -1), "a"), y), "b"), -1), "c")

    scheduled(body, x=(3, 40), y=(3, 40))


def test_a_value_needed_twice_or_returned_is_not_fused():
    def body(emit, x):
        root = emit(op.sqrt(op.abs(x)), "root")
        first = emit(op.exp(root), "first")
        return [first, emit(op.negative(op.sum(root, [1])), "second")]

    after = scheduled(body, x=(5, 60))
    assert len(functions(after)) == 3


def test_equal_islands_share_a_function():
    def body(emit, x):
        one = emit(op.reshape(emit(op.exp(op.multiply(x, x)), "one"), (60, 5)), "view")
        return emit(op.exp(op.multiply(one, one)), "two"), emit(op.exp(op.multiply(x, x)), "three")

    after = legal(lambda emit, x: list(body(emit, x)), x=(5, 60))
    assert len(functions(ScheduleIslands(CPU)(after))) == 2


def test_without_fusion_every_function_stays():
    before = legal(lambda emit, x: op.exp(op.multiply(x, x)), x=(3, 50))
    after = ScheduleIslands(CPU, fuse=False)(before)
    assert sorted(functions(after)) == sorted(functions(before))
    assert_same_numbers(before, after)


def kernel_module() -> tvm.IRModule:
    """exp -> a kernel -> log."""
    with KernelBuilder("kernel") as k:
        x, y = k.arguments(("x", (64,), "float32"), ("y", (64,), "float32"))
        with T.parallel(64) as i:
            T.buffer_store(y, x[i], [i])
    builder = relax.BlockBuilder()
    variable = builder.add_func(k.func.with_attr("global_symbol", "kernel"), "kernel")
    x = relax.Var("x", relax.TensorType((64,), "float32"))
    with builder.function("main", [x], attrs={"input_names": ["x"], "output_names": ["y"], "layer_names": {}}):
        with builder.dataflow():
            first = builder.emit(op.exp(x), "first")
            second = builder.emit(
                relax.call_tir(variable, [first], out_ty=relax.TensorType((64,), "float32")), "second"
            )
            out = builder.emit_output(op.log(second), "out")
        builder.emit_func_output(out)
    return relax.transform.LegalizeOps()(builder.get())


def test_kernels_are_left_alone():
    before = kernel_module()
    after = ScheduleIslands(CPU)(before)
    tvm.ir.assert_structural_equal(after["kernel"], before["kernel"])
    assert names(after) == ["first", "second", "out"]
    assert not any(is_island(func) for func in functions(after).values())
    assert [name for name, func in functions(after).items() if KERNEL in func.attrs] == ["kernel"]


@pytest.mark.parametrize("operator", [op.cumsum, op.sort, op.argsort], ids=lambda o: o.__name__)
def test_scans_and_sorts_stay_and_say_why(operator):
    before = legal(lambda emit, x: operator(op.exp(x), 1), x=(6, 40))
    after = ScheduleIslands(CPU)(before)
    reasons = [str(func.attrs[UNSCHEDULED]) for func in functions(after).values() if UNSCHEDULED in func.attrs]
    assert len(reasons) == 1
    assert "failed" not in reasons[0]
    assert any(ISLAND in func.attrs for func in functions(after).values())


def test_a_failure_falls_back_to_single_functions(monkeypatch):
    def fail(*_):
        raise RuntimeError("no")

    monkeypatch.setattr(schedule_islands, "schedule_program", fail)
    before = legal(lambda emit, x: op.exp(op.multiply(x, x)), x=(3, 50))
    after = ScheduleIslands(CPU)(before)
    assert sorted(functions(after)) == sorted(functions(before))
    assert all(ISLAND in func.attrs for func in functions(after).values())
    assert_same_numbers(before, after)


def test_multiple_outputs():
    before = legal(lambda emit, x: [(parts := emit(op.split(x, [7], 1), "parts"))[0], parts[1]], x=(3, 50))
    x = np.arange(150, dtype=np.float32).reshape(3, 50)
    np.testing.assert_array_equal(np.concatenate(execute(ScheduleIslands(CPU)(before), x), 1), x)
