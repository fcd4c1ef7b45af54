"""Small QDQ modules for the tests of the passes behind quantisation, and the kernel orders they become."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from tests.passes.pass_testing import constant, f32, run
from tvm_int8.kernel_op import is_kernel, spec_of
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.expressions import op_name, shape_of
from tvm_int8.passes.order_kernels import OrderKernels
from tvm_int8.reference.network import run_network
from tvm_int8.specs import Elementwise, Spec


def scalar(value, dtype: str) -> relax.Expr:
    return constant(np.asarray(value, dtype))


def quantize(emit, x, scale=0.05, zero_point=128, dtype="uint8"):
    return emit(relax.op.quantize(x, scalar(scale, "float32"), scalar(zero_point, dtype), axis=-1, out_dtype=dtype))


def dequantize(emit, q, scale=0.05, zero_point=128, dtype="uint8"):
    return emit(relax.op.dequantize(q, scalar(scale, "float32"), scalar(zero_point, dtype), axis=-1))


def qdq(emit, x, scale=0.05, zero_point=128, dtype="uint8"):
    """`x` rounded to 8 bits: quantize, dequantize."""
    return dequantize(emit, quantize(emit, x, scale, zero_point, dtype), scale, zero_point, dtype)


def int8_weight(emit, *shape: int, axis: int = 0, scale: float = 0.01, seed: int = 5):
    """A dequantize of int8 constants, extremes included, one scale per output channel."""
    values = np.random.default_rng(seed).integers(-127, 128, shape).astype("int8")
    scales = f32(shape[axis], seed=seed + 1, low=0.3 * scale, high=scale)
    zeros = np.zeros(shape[axis], "int8")
    return emit(relax.op.dequantize(constant(values), constant(scales), constant(zeros), axis=axis))


def orders(mod: tvm.IRModule) -> list[Spec]:
    """The specs of a module's kernel orders, in order."""
    return [spec_of(binding.value) for binding in Dataflow(mod).bindings if is_kernel(binding.value)]


def is_conversion(spec: Spec) -> bool:
    """Whether a kernel only quantizes or only dequantizes."""
    return isinstance(spec, Elementwise) and len(spec.inputs) == 1 and spec.inputs[0].dtype != spec.result.dtype


def main_orders(mod: tvm.IRModule) -> list[Spec]:
    """The orders that are more than a conversion at the border of the integers."""
    return [spec for spec in orders(mod) if not is_conversion(spec)]


def leftovers(mod: tvm.IRModule) -> list[str]:
    """Operators that did not become kernels."""
    return [op_name(b.value) for b in Dataflow(mod).bindings if not is_kernel(b.value)]


def ordered(mod: tvm.IRModule) -> tvm.IRModule:
    """The module after OrderKernels; the input was not touched, and a second run changes nothing."""
    text = mod.script()
    after = OrderKernels()(mod)
    assert mod.script() == text
    tvm.ir.assert_structural_equal(after, OrderKernels()(after))
    relax.analysis.well_formed(after)
    return after


def random_inputs(mod: tvm.IRModule, scale: float = 6.0) -> list[np.ndarray]:
    return [f32(*shape_of(p), seed=11 + i, low=-scale, high=scale) for i, p in enumerate(mod["main"].params)]


def assert_orders_compute(mod: tvm.IRModule, *steps: float) -> tvm.IRModule:
    """The ordered module computes what the QDQ module means, up to one step of each output.

    For integers a step is the output's scale: TVM rounds halves away from zero and multiplies float32 values, kernels
    round halves to even and multiply integers, so few elements may differ. For floats it is the tolerance.
    """
    after, inputs = ordered(mod), random_inputs(mod)
    for expected, actual, step in zip(run(mod, *inputs), run_network(after, *inputs), steps, strict=True):
        assert actual.shape == expected.shape
        difference = np.abs(actual.astype(np.float64) - expected)
        assert difference.max() <= 1.001 * step
        assert (difference > 0.5 * step).mean() <= 0.02
        assert len(np.unique(expected)) > 3, "the test's numbers saturate"
    return after
