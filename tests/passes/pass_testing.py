"""What the tests of the passes share: building small modules, listing their operators, running them with plain TVM."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tvm
from tvm import relax

from tvm_int8.passes.dataflow import Dataflow, constant, dtype_of, op_name, shape_of


def f32(*shape: int, seed: int = 1, low: float = -1.0, high: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(low, high, shape).astype("float32")


def const(*shape: int, **kwargs) -> relax.Expr:
    return constant(f32(*shape, **kwargs))


def module(body: Callable, layer_names: dict[str, str] | None = None, dtype: str = "float32", **inputs) -> tvm.IRModule:
    """`main` with the bindings `body(emit, *inputs)` emits; it returns the output expression, or a list of them."""
    builder = relax.BlockBuilder()
    params = [relax.Var(name, relax.TensorType(shape, dtype)) for name, shape in inputs.items()]
    attrs = {"input_names": list(inputs), "output_names": ["y"], "layer_names": layer_names or {}}
    with builder.function("main", params, attrs=attrs):
        with builder.dataflow():
            results = body(builder.emit, *params)
            single = not isinstance(results, list)
            outputs = [builder.emit_output(expr, "out") for expr in ([results] if single else results)]
        builder.emit_func_output(outputs[0] if single else outputs)
    return builder.get()


def ops(mod: tvm.IRModule) -> list[str]:
    """Operators in order of execution; other bindings by their kind."""
    return [op_name(binding.value) or type(binding.value).__name__ for binding in Dataflow(mod).bindings]


def names(mod: tvm.IRModule) -> list[str]:
    return [binding.var.name for binding in Dataflow(mod).bindings]


def call_named(mod: tvm.IRModule, name: str) -> relax.Call:
    """The only call of an operator."""
    (call,) = [binding.value for binding in Dataflow(mod).bindings if op_name(binding.value) == name]
    return call


def run(mod: tvm.IRModule, *inputs: np.ndarray) -> list[np.ndarray]:
    """Outputs of a module compiled by plain TVM, with LLVM's quickest code generation."""
    target = tvm.target.Target({"kind": "llvm", "opt-level": 0})
    machine = relax.VirtualMachine(tvm.compile(mod, target), tvm.cpu())
    result = machine["main"](*[tvm.runtime.tensor(array) for array in inputs])
    return [item.numpy() for item in ([result] if isinstance(result, tvm.runtime.Tensor) else result)]


def assert_same_numbers(before: tvm.IRModule, after: tvm.IRModule, tolerance: float = 2e-5) -> None:
    """Both modules compute the same outputs from random inputs, up to `tolerance` of the largest output."""
    inputs = [f32(*shape_of(p), seed=7 + i).astype(dtype_of(p)) for i, p in enumerate(before["main"].params)]
    for expected, actual in zip(run(before, *inputs), run(after, *inputs), strict=True):
        assert actual.shape == expected.shape
        assert actual.dtype == expected.dtype
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * max(1.0, np.abs(expected).max()))


def assert_unchanged(before: tvm.IRModule, after: tvm.IRModule) -> None:
    tvm.ir.assert_structural_equal(before, after)
    assert names(before) == names(after)


def transformed(compiler_pass, before: tvm.IRModule) -> tvm.IRModule:
    """The module after a pass; checks on the way that a second run changes nothing and `before` was not touched."""
    text = before.script()
    after = compiler_pass(before)
    assert before.script() == text
    assert_unchanged(after, compiler_pass(after))
    relax.analysis.well_formed(after)
    return after
