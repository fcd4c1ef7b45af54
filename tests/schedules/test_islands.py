"""Float islands against NumPy: every kind of operator at odd sizes, and the polynomials over their whole range."""

import math

import numpy as np
import pytest
import tvm
from tvm import relax, tirx
from tvm.relax import op
from tvm.tirx.script import builder as T

from tests.schedules.kernel_testing import NATIVE, ZNVER4, guarded, runnable
from tvm_int8.schedules import island_math
from tvm_int8.schedules.cpu import Cpu
from tvm_int8.schedules.island_expressions import i64
from tvm_int8.schedules.islands import ISLAND, UNSCHEDULED, schedule_island
from tvm_int8.schedules.vector import KernelBuilder

HASWELL = Cpu("haswell", "none", 256, 16, threads=2)
CPUS = [
    pytest.param(ZNVER4, id="znver4", marks=pytest.mark.isa("avx512f", "avx512bw", "avx512vl", "avx512vnni")),
    pytest.param(HASWELL, id="haswell", marks=pytest.mark.isa("avx2", "fma")),
]
SHAPES = [(7,), (1, 1000), (3, 17), (1, 8, 7, 7), (2, 5, 13, 11), (2, 1, 3, 1, 5), (1, 24, 56, 56)]


def legalized(call, *arguments) -> tirx.PrimFunc:
    """The function TVM makes of one operator; arguments are (shape, dtype)."""
    builder = relax.BlockBuilder()
    params = [relax.Var(f"x{i}", relax.TensorType(shape, dtype)) for i, (shape, dtype) in enumerate(arguments)]
    with builder.function("main", params):
        with builder.dataflow():
            out = builder.emit_output(builder.emit(call(*params)))
        builder.emit_func_output(out)
    functions = relax.transform.LegalizeOps()(builder.get()).functions.values()
    (func,) = [func for func in functions if isinstance(func, tirx.PrimFunc)]
    return func


def compiled(func: tirx.PrimFunc, cpu: Cpu):
    module = tvm.IRModule({"main": func.with_attr("global_symbol", "main")})
    return tvm.compile(module, target=tvm.target.Target({"kind": "llvm", "mcpu": runnable(cpu.name)}))["main"]


def run(func: tirx.PrimFunc, cpu: Cpu, *inputs: np.ndarray) -> list[np.ndarray]:
    """The outputs, in memory that ends at a forbidden page; inputs likewise."""
    outputs = []
    for param in func.params[len(inputs) :]:
        shape = [int(extent) for extent in param.ty.shape]
        outputs.append(guarded(np.full(shape, 0x5A, str(param.ty.dtype))))
    arrays = [*(guarded(np.asarray(a, order="C")) for a in inputs), *outputs]
    compiled(func, cpu)(*(tvm.runtime.from_dlpack(a) for a in arrays))
    return outputs


def assert_scheduled(func: tirx.PrimFunc) -> None:
    """A parallel loop and a vector loop, or so little to do that neither helps."""
    text = func.script()
    assert ISLAND in func.attrs
    assert "T.parallel" in text
    assert ("T.vectorized" in text) != (UNSCHEDULED in func.attrs)


def check(call, expected, *inputs: np.ndarray, cpu: Cpu = NATIVE, tolerance: float = 1e-6) -> tirx.PrimFunc:
    func = legalized(call, *((a.shape, str(a.dtype)) for a in inputs))
    scheduled = schedule_island(func, "island", cpu)
    assert_scheduled(scheduled)
    (found,) = run(scheduled, cpu, *inputs)
    expected = np.asarray(expected)
    assert found.shape == expected.shape
    if found.dtype.kind == "f":
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())
    else:
        np.testing.assert_array_equal(found, expected)
    return scheduled


def values(*shape: int, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if dtype == "float32":
        return rng.uniform(0.1, 3, shape).astype(dtype)
    low, high = {"bool": (0, 1), "uint8": (0, 255)}.get(dtype, (-100, 100))
    return rng.integers(low, high, shape, endpoint=True).astype(dtype)


def softmax(x, axis):
    e = np.exp(x.astype(np.float64) - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_elementwise(shape):
    x, y = values(*shape), values(*shape, seed=1)
    check(op.exp, np.exp(x), x)
    check(op.add, x + y, x, y)
    check(op.sqrt, np.sqrt(x), x)
    check(op.divide, x / y, x, y)
    check(lambda a: op.astype(a, "int64"), x.astype("int64"), x)
    check(op.greater, x > y, x, y)
    integers = values(*shape, dtype="uint8")
    check(lambda a: op.astype(a, "float32"), integers.astype("float32"), integers)
    check(op.add, integers + integers, integers, integers)
    mask = values(*shape, dtype="bool")
    check(op.where, np.where(mask, x, y), mask, x, y)


@pytest.mark.parametrize(("shape", "axis"), [(s, a) for s in SHAPES for a in range(len(s)) if s != SHAPES[-1]], ids=str)
def test_reductions(shape, axis):
    x, integers = values(*shape), values(*shape, dtype="int32")
    check(lambda a: op.sum(a, [axis]), x.sum(axis, dtype=np.float64), x)
    check(lambda a: op.max(a, [axis], keepdims=True), x.max(axis, keepdims=True), x)
    check(lambda a: op.min(a, [axis]), integers.min(axis), integers)
    check(lambda a: op.argmax(a, axis), integers.argmax(axis), integers)
    check(lambda a: op.nn.softmax(a, axis), softmax(x, axis), x)
    check(lambda a: op.nn.log_softmax(a, axis), np.log(softmax(x, axis)), x)


@pytest.mark.parametrize("shape", [s for s in SHAPES if len(s) > 1], ids=str)
def test_data_movement(shape):
    for dtype in ("float32", "uint8"):
        x, other = values(*shape, dtype=dtype), values(shape[0], 3, *shape[2:], dtype=dtype)
        order = [0, *range(2, len(shape)), 1]
        check(lambda a, order=order: op.permute_dims(a, order), x.transpose(order), x)
        check(lambda a: op.permute_dims(a), x.transpose(), x)
        check(lambda a, b: op.concat([a, b], 1), np.concatenate([x, other], 1), x, other)
        check(lambda a: op.reshape(a, [-1]), x.reshape(-1), x)
        check(lambda a: op.tile(a, [2] * len(shape)), np.tile(x, [2] * len(shape)), x)
        check(lambda a: op.flip(a, axis=1), np.flip(x, 1), x)
        pads = [0, 0] * (len(shape) - 2) + [1, 2, 3, 1]
        padded = np.pad(x, np.reshape(pads, (-1, 2)), constant_values=0)
        check(lambda a, pads=pads: op.nn.pad(a, pads), padded, x)
        index = np.array([shape[-1] - 1, 0, shape[-1] // 2])
        check(lambda a, i: op.take(a, i, axis=-1, mode="clip"), x.take(index, -1), x, index)


@pytest.mark.parametrize("shape", [(1, 24, 56, 56), (2, 5, 13, 11)], ids=str)
def test_broadcasting_and_normalisation(shape):
    x, scale, row = values(*shape), values(1, shape[1], 1, 1, seed=2), values(shape[-1], seed=3)
    check(op.multiply, x * scale, x, scale)
    check(lambda a: op.mean(a, [2, 3], keepdims=True), x.mean((2, 3), keepdims=True, dtype=np.float64), x)
    wide = x.astype(np.float64)
    normal = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
    check(lambda a, g, b: op.nn.layer_norm(a, g, b, [-1]), normal * row + row, x, row, row, tolerance=3e-6)


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize(
    ("a", "b"),
    [((4, 7), (7, 5)), ((2, 10, 20), (2, 20, 30)), ((1, 197, 64), (64, 197)), ((2, 3, 33, 17), (2, 3, 17, 49)),
     ((1, 512), (512, 1000)), ((3, 1, 64), (3, 64, 1)), ((8, 100, 64), (8, 64, 100)), ((50, 64), (64,))],
    ids=str,
)  # fmt: skip
def test_matmul(a, b, cpu):
    x, y = values(*a), values(*b, seed=1)
    check(op.matmul, x.astype(np.float64) @ y, x, y, cpu=cpu)


@pytest.mark.parametrize("cpu", CPUS)
def test_convolutions(cpu):
    x, weight = values(2, 6, 29), values(5, 6, 3, seed=1)
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, 3, axis=2)
    check(lambda a, w: op.nn.conv1d(a, w, padding=1), np.einsum("nctk,ock->not", windows, weight), x, weight, cpu=cpu)
    x, weight = values(1, 3, 5, 6, 19), values(7, 3, 3, 3, 3, seed=1)
    windows = np.lib.stride_tricks.sliding_window_view(x.astype(np.float64), (3, 3, 3), axis=(2, 3, 4))
    check(lambda a, w: op.nn.conv3d(a, w), np.einsum("ncdhwijk,ocijk->nodhw", windows, weight), x, weight, cpu=cpu)


def test_long_reductions_are_cut_in_tasks():
    x = values(1, 3, 400, 500)
    scheduled = check(lambda a: op.sum(a), x.sum(dtype=np.float64), x)
    assert "partial" in scheduled.attrs[ISLAND] or "T.parallel(T.int64(1))" in scheduled.script()
    assert scheduled.script().count("T.parallel") > 1
    check(lambda a: op.nn.softmax(a, -1), softmax(x.reshape(1, -1), -1), x.reshape(1, -1))
    check(lambda a: op.nn.softmax(a, 0), softmax(x.reshape(3, -1), 0), x.reshape(3, -1))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1)], ids=str)
def test_a_single_element_says_so(shape):
    x = values(*shape)
    scheduled = check(op.exp, np.exp(x), x)
    assert "second lane" in scheduled.attrs[UNSCHEDULED]


def test_quantize_rounds_half_to_even():
    x = np.array([0.5, 1.5, 2.5, -0.5, -10, 300, 3.49], np.float32)
    func = legalized(
        lambda a: op.quantize(a, relax.const(np.float32(1)), relax.const(np.uint8(4)), -1, "uint8"), ((7,), "float32")
    )
    (found,) = run(schedule_island(func, "island", HASWELL), HASWELL, x)
    assert found.tolist() == [4, 6, 6, 4, 0, 255, 7]


def test_what_cannot_be_scheduled_stays_and_says_why():
    scatter = legalized(
        lambda a, i, u: op.scatter_elements(a, i, u, 1), ((10, 20), "float32"), ((10, 1), "int64"), ((10, 1), "float32")
    )
    left = schedule_island(scatter, "island", NATIVE)
    assert UNSCHEDULED in left.attrs
    assert ISLAND not in left.attrs
    tvm.ir.assert_structural_equal(left.body, scatter.body, map_free_vars=True)


def evaluated(function, x: np.ndarray) -> np.ndarray:
    """An `island_math` function of scalars, vectorised over `x`."""
    x = np.resize(x.astype(np.float32), -(-x.size // 16) * 16)
    with KernelBuilder("main") as k:
        source, target = k.arguments(("x", x.shape, "float32"), ("y", x.shape, "float32"))
        with T.parallel(i64(1)), T.serial(i64(x.size // 16)) as i, T.vectorized(i64(16)) as lane:
            T.buffer_store(target, function(source[i * i64(16) + lane]), [i * i64(16) + lane])
    (found,) = run(k.func, HASWELL, x)
    return x, found


SPECIAL = np.array([0, -0.0, math.inf, -math.inf, math.nan, 3e38, 1, -1, 88.7, 88.73, -104, -110, 100, 1e-30, 2, 0.5])
POSITIVE = np.exp(np.random.default_rng(0).uniform(-86, 88, 1 << 14))
SMALL = np.exp(np.random.default_rng(1).uniform(-30, 0, 1 << 12))


@pytest.mark.isa("avx2", "fma")
@pytest.mark.parametrize(
    ("name", "reference", "points", "limit"),
    [
        ("exp", np.exp, np.linspace(-87, 88.5, 1 << 16), 1e-7),
        ("log", np.log, np.r_[POSITIVE, np.linspace(0.5, 2, 1 << 14)], 1e-7),
        ("log1p", np.log1p, np.r_[POSITIVE, SMALL, -SMALL], 2e-7),
        ("sigmoid", lambda x: 1 / (1 + np.exp(-x)), np.linspace(-80, 80, 1 << 16), 2e-7),
        ("tanh", np.tanh, np.r_[np.linspace(-10, 10, 1 << 15), SMALL, -SMALL], 3e-7),
        ("sinh", np.sinh, np.r_[np.linspace(-80, 80, 1 << 15), SMALL, -SMALL], 5e-7),
        ("cosh", np.cosh, np.linspace(-80, 80, 1 << 15), 3e-7),
        ("erf", np.vectorize(math.erf), np.r_[np.linspace(-5, 5, 1 << 13), SMALL], 4e-7),
    ],
)
@pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning")
def test_transcendental_functions(name, reference, points, limit):
    x, found = evaluated(getattr(island_math, name), points)
    expected = reference(x.astype(np.float64))
    normal = (np.abs(expected) > 1.2e-38) & (np.abs(expected) < 3.3e38)
    assert (np.abs(found - expected)[normal] <= limit * np.abs(expected)[normal]).all()
    special = SPECIAL[SPECIAL != 88.73] if name in ("sinh", "cosh") else SPECIAL  # there they overflow as exp does
    x, found = evaluated(getattr(island_math, name), special)
    expected = reference(x.astype(np.float64)).astype(np.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-38)


@pytest.mark.isa("avx2", "fma")
@pytest.mark.parametrize("exponent", [0, 1, 2, 3, -2, 0.5, -0.5, 0.75, -0.75, 1.5, -1.25, 0.6, -1 / 3, 33, 2.4])
def test_powers(exponent):
    exponent = np.float32(exponent)
    x = np.exp(np.random.default_rng(2).uniform(-2, 2, 1 << 12))
    x, found = evaluated(lambda a: island_math.power(a, tirx.const(float(exponent), "float32")), x)
    expected = x.astype(np.float64) ** np.float64(exponent)
    limit = 2.5e-7 if float(exponent * 4).is_integer() and abs(exponent) < 5 else 6e-6
    np.testing.assert_allclose(found, expected, rtol=limit)


@pytest.mark.isa("avx2", "fma")
def test_power_of_negative_numbers_follows_the_exponents_parity():
    x = np.array([-2, -2, -2, -2, 0, 0, 3, -1.5], np.float32)
    y = np.array([2, 3, -1, 0.5, 2, 0, 0, -3], np.float32)
    scheduled = schedule_island(legalized(op.power, ((8,), "float32"), ((8,), "float32")), "island", HASWELL)
    (found,) = run(scheduled, HASWELL, x, y)
    np.testing.assert_allclose(found, [4, -8, -0.5, math.nan, 0, 1, 1, -1 / 3.375], rtol=1e-6)
