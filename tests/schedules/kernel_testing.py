"""Compile one kernel, run it on guarded memory, and compare it to the last bit with `tvm_int8.reference.evaluate`.

Every array a kernel is given ends (up to 64-byte alignment) at a page that may not be touched, so a read behind the end
crashes; the output stands between canaries, so a stray write is seen.  Padding lanes of inputs hold garbage.
"""

from __future__ import annotations

import ctypes
import mmap
import time

import numpy as np
import pytest
import tvm

from tvm_int8.code_generation import TENSOR_IR
from tvm_int8.reference import evaluate
from tvm_int8.schedules import amx
from tvm_int8.schedules.cpu import Cpu
from tvm_int8.schedules.rule import Constants, Rule
from tvm_int8.specs import Kernel, Spec, Tensor
from tvm_int8.target import missing_features, required_cpu_features

HASWELL = Cpu("haswell", "avx2", 256, 16, threads=2)
ZNVER4 = Cpu("znver4", "avx512vnni", 512, 32, threads=2)
CASCADELAKE = Cpu("cascadelake", "avx512vnni", 512, 32, threads=2)
SAPPHIRERAPIDS = Cpu("sapphirerapids", "avx512vnni", 512, 32, 48 << 10, 2 << 20, threads=2, amx=True)

NATIVE = HASWELL if missing_features(required_cpu_features("cascadelake")) else ZNVER4
"""What kernels are built for where a test does not say: the widest vectors that this machine has."""

_PAGE = mmap.PAGESIZE
_CANARY = 0xA5
_mprotect = ctypes.CDLL(None, use_errno=True).mprotect
_mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def pack(array: np.ndarray, block: int, fill: float = 0) -> np.ndarray:
    """[N, C, H, W] -> [N, ceil(C / block), H, W, block] with `fill` in the padding lanes (block 0: unchanged)."""
    if not block:
        return np.ascontiguousarray(array)
    n, c, h, w = array.shape
    padded = np.pad(array, ((0, 0), (0, -c % block), (0, 0), (0, 0)), constant_values=fill)
    return np.ascontiguousarray(padded.reshape(n, -1, block, h, w).transpose(0, 1, 3, 4, 2))


def unpack(array: np.ndarray, tensor: Tensor) -> np.ndarray:
    """The logical NCHW array of `tensor`'s physical one; padding lanes are dropped."""
    if not tensor.block:
        return array.reshape(tensor.shape)
    n, c, h, w = tensor.shape
    return array.reshape(tensor.physical_shape).transpose(0, 1, 4, 2, 3).reshape(n, -1, h, w)[:, :c]


def random_array(tensor: Tensor, rng: np.random.Generator) -> np.ndarray:
    """Logical NCHW values of `tensor`: integers over their full range, both ends included and frequent."""
    if tensor.dtype == "float32":
        return (rng.standard_normal(tensor.shape) * 3).astype(np.float32)
    info = np.iinfo(tensor.dtype)
    values = rng.integers(info.min, info.max, tensor.shape, endpoint=True)
    ends = rng.choice([info.min, info.max], tensor.shape)
    return np.where(rng.random(tensor.shape) < 0.2, ends, values).astype(tensor.dtype)


def compile_kernel(kernel: Kernel, mcpu: str = "znver4"):
    """The TVM executable of one kernel; the function is called "main"."""
    func = kernel.func.with_attr("global_symbol", "main")
    if func.attrs and amx.NEEDS_PERMISSION in func.attrs:
        func = amx.with_permission(func)
    module = tvm.IRModule({"main": func})
    return tvm.compile(module, tvm.target.Target({"kind": "llvm", "mcpu": mcpu}), tir_pipeline=TENSOR_IR)


def runnable(mcpu: str) -> str:
    """`mcpu`, or the CPU whose AVX512-VNNI code runs on most machines where this one lacks some of its features.

    Skips the test where this machine has none of either.
    """
    if not missing_features(required_cpu_features(mcpu)):
        return mcpu
    missing = missing_features(required_cpu_features("cascadelake"))
    if missing:
        pytest.skip(f"code for {mcpu}, and this CPU has no {', '.join(missing)}")
    return "cascadelake"


def assembly(kernel: Kernel, mcpu: str = "znver4") -> str:
    """What LLVM makes of the kernel."""
    return compile_kernel(kernel, mcpu).mod.inspect_source("asm")


def guarded(array: np.ndarray) -> np.ndarray:
    """A copy of `array` that starts at a multiple of 64 bytes, canaries before it, a forbidden page right behind it."""
    size = -(-array.nbytes // 64) * 64
    pages = -(-size // _PAGE) + 1
    memory = mmap.mmap(-1, (pages + 1) * _PAGE)
    whole = np.frombuffer(memory, np.uint8)
    whole[: pages * _PAGE] = _CANARY
    if _mprotect(whole.ctypes.data + pages * _PAGE, _PAGE, 0):
        raise OSError(ctypes.get_errno(), "mprotect")
    start = pages * _PAGE - size
    view = whole[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def _check_canaries(view: np.ndarray) -> None:
    whole = view
    while isinstance(whole.base, np.ndarray):
        whole = whole.base
    start = view.ctypes.data - whole.ctypes.data
    assert (whole[:start] == _CANARY).all(), "the kernel wrote in front of its output"
    assert (whole[start + view.nbytes : whole.size - _PAGE] == _CANARY).all(), "the kernel wrote behind its output"


def _physical_inputs(spec: Spec, inputs, rng) -> list[np.ndarray]:
    """Packed inputs; padding lanes of blocks of 16 hold garbage, those of images the value the layout promises."""
    packed = []
    for tensor, array in zip(spec.inputs, inputs, strict=True):
        fill = int(rng.integers(1, 100)) if tensor.block == 16 else 0
        packed.append(guarded(pack(np.asarray(array, tensor.dtype), tensor.block, fill)))
    return packed


def run_kernel(kernel: Kernel, spec: Spec, inputs, mcpu: str = "znver4", seed: int = 0) -> np.ndarray:
    """Compile and run; takes logical NCHW inputs, returns the output as it stands in memory (physical shape)."""
    executable = compile_kernel(kernel, runnable(mcpu))
    result = guarded(np.full(spec.result.physical_shape, 0x5A, spec.result.dtype))
    arrays = _physical_inputs(spec, inputs, np.random.default_rng(seed))
    arrays += [guarded(np.asarray(constant)) for constant in kernel.constants] + [result]
    executable["main"](*(tvm.runtime.from_dlpack(a) for a in arrays))
    _check_canaries(result)
    if spec.result.dtype == "float32":
        assert np.isfinite(result).all(), "padding lanes must stay finite"
    return result


def assert_exact(
    rule: Rule, spec: Spec, constants: Constants | None = None, inputs=None, cpu=NATIVE, knobs=None, seed=0
) -> Kernel:
    """Build `spec` with `rule`, run it on `inputs` (random ones by default), demand the reference's very bits.

    `knobs` override some of the heuristic's.
    """
    constants = constants or Constants()
    rng = np.random.default_rng(seed)
    inputs = [random_array(tensor, rng) for tensor in spec.inputs] if inputs is None else inputs
    assert rule.applies(spec, cpu)
    if knobs is not None:
        knobs = {**rule.knob_space(spec, cpu).heuristic, **knobs}
    kernel = rule.build(spec, constants, cpu, knobs)
    found = unpack(run_kernel(kernel, spec, inputs, cpu.name, seed), spec.result)
    expected = evaluate(spec, inputs, constants)
    assert expected.dtype == found.dtype
    assert expected.shape == found.shape
    wrong = np.argwhere(_bits(found) != _bits(expected))
    if len(wrong):
        at = tuple(wrong[0])
        raise AssertionError(f"{len(wrong)} of {found.size} differ; at {at}: {found[at]}, expected {expected[at]}")
    return kernel


def _bits(array: np.ndarray) -> np.ndarray:
    """float32 as integers, both zeros as one."""
    return (array + np.float32(0)).view(np.int32) if array.dtype == np.float32 else array


def seconds(kernel: Kernel, spec: Spec, mcpu: str = "znver4", repeats: int = 200) -> float:
    """Median time of one call on whatever fits the spec, warm."""
    rng = np.random.default_rng(0)
    arrays = [pack(random_array(tensor, rng), tensor.block) for tensor in spec.inputs]
    arrays += [np.asarray(c) for c in kernel.constants] + [np.zeros(spec.result.physical_shape, spec.result.dtype)]
    tensors = [tvm.runtime.tensor(a) for a in arrays]
    main, times = compile_kernel(kernel, runnable(mcpu))["main"], []
    for _ in range(repeats):
        start = time.perf_counter()
        main(*tensors)
        times.append(time.perf_counter() - start)
    return float(np.median(times))
