import os
import threading

import numpy as np
import pytest
import tvm

from tests.runtime_module import SHAPE, build_module, build_parallel_module
from tvm_int8 import ConfigError, TargetError, TvmInt8Error
from tvm_int8.host import usable_cpus
from tvm_int8.metadata import KernelRow, TensorInfo
from tvm_int8.runtime import InputError
from tvm_int8.runtime.threads import run_on_threads

two_cpus = pytest.mark.skipif(len(usable_cpus()) < 2, reason="this process may use one CPU only")


@pytest.fixture(scope="module")
def module():
    return build_module()


@pytest.fixture
def arrays(rng):
    return rng.standard_normal(SHAPE, np.float32), rng.integers(0, 256, SHAPE, np.uint8)


def test_call_and_run(module, arrays):
    image, offset = arrays
    expected = image * 2 + offset
    total, relu = module(image, offset)
    np.testing.assert_array_equal(total, expected)
    np.testing.assert_array_equal(relu, np.maximum(expected, 0))
    named = module.run({"offset": offset, "data/image:0": image})
    assert list(named) == ["sum", "relu"]
    np.testing.assert_array_equal(named["sum"], expected)


def test_outputs_belong_to_the_user(module, arrays):
    first = module(*arrays)
    kept = [array.copy() for array in first]
    for array in first:
        assert array.flags.owndata
        assert array.flags.writeable
    module(arrays[0] + 1, arrays[1])
    for array, copy in zip(first, kept, strict=True):
        np.testing.assert_array_equal(array, copy)
        array[:] = 7
    np.testing.assert_array_equal(module(*arrays)[0], kept[0])


def test_inputs_are_not_written_and_may_be_of_any_layout(module, arrays):
    image, offset = arrays
    expected = module(image, offset)[0]
    image.flags.writeable = offset.flags.writeable = False
    strided = np.zeros((4, 3, 2, 2), np.float32)
    strided[..., 1] = image.T
    for form in (np.asfortranarray(image), strided[..., 1].T, image.astype(np.float64), memoryview(image)):
        form = np.asarray(form) if isinstance(form, memoryview) else form
        np.testing.assert_array_equal(module(form, offset)[0], expected)
    for form in (offset.astype(np.int64), offset[::-1][::-1], tvm.runtime.tensor(offset)):
        np.testing.assert_array_equal(module(image, form)[0], expected)
    np.testing.assert_array_equal(module(np.ones(SHAPE, bool), offset)[0], 2.0 + offset)


def test_torch_tensors(module, arrays):
    torch = pytest.importorskip("torch")
    image = torch.from_numpy(arrays[0]).requires_grad_()
    np.testing.assert_array_equal(module(image, torch.from_numpy(arrays[1]))[0], module(*arrays)[0])
    with pytest.raises(InputError, match=r"input 'data/image:0'.*float32"):
        module(image.bfloat16(), arrays[1])


F32, U8 = np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.uint8)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: m(), ["inputs: 0 arrays", "data/image:0: float32[2, 3, 4]; offset: uint8[2, 3, 4]"]),
        (lambda m: m(F32, U8, U8), ["3 arrays"]),
        (lambda m: m(F32[0], U8), ["input 'data/image:0'", "shape [3, 4]", "[2, 3, 4]", "x[None]"]),
        (lambda m: m(np.zeros((5, 3, 4)), U8), ["shape [5, 3, 4]", "shapes are static"]),
        (lambda m: m(F32.astype(np.complex64), U8), ["complex64", "float32"]),
        (lambda m: m(F32.astype(object), U8), ["object"]),
        (lambda m: m(F32, U8 + np.float32(1)), ["input 'offset'", "dtype float32", "uint8"]),
        (lambda m: m(F32, U8 - np.int64(1)), ["int64 values from -1 to -1", "fit into uint8"]),
        (lambda m: m("image", U8), ["a str"]),
        (lambda m: m(None, U8), ["a NoneType"]),
        (lambda m: m(F32.tolist(), U8), ["a list", "np.asarray"]),
        (lambda m: m.run({"offset": U8}), ["no 'data/image:0'", "exactly 'data/image:0', 'offset'"]),
        (lambda m: m.run({"offset": U8, "data/image:0": F32, "x": U8}), ["unknown 'x'"]),
        (lambda m: m.run([F32, U8]), ["a list", "a dict"]),
        (lambda m: m.benchmark([F32]), ["1 arrays"]),
        (lambda m: m.profile({"image": F32}), ["unknown 'image'"]),
    ],
)
def test_inputs_that_do_not_fit(module, call, words):
    with pytest.raises(InputError) as caught:
        call(module)
    assert isinstance(caught.value, TvmInt8Error)
    for word in words:
        assert word in str(caught.value)


def test_nchw_is_explained():
    module = build_parallel_module(inputs=[TensorInfo("x", (1, 3, 224, 224), "float32")])
    with pytest.raises(InputError, match="the model takes NCHW"):
        module(np.zeros((1, 224, 224, 3), np.float32))


def test_a_single_input_as_dict_is_explained():
    with pytest.raises(InputError, match=r"module\.run"):
        build_parallel_module()({"x": F32})


def test_benchmark(module):
    result = module.benchmark(repeat=7, warmup=1)
    assert 0 < result.min_ms <= result.median_ms <= result.p90_ms
    assert (result.runs, result.num_threads) == (7, min(result.num_threads, len(usable_cpus())))
    assert "7 runs" in str(result)
    assert result.to_dict()["runs"] == 7
    assert "(1 run on 1 thread)" in str(module.benchmark([F32, U8], repeat=1, warmup=0, num_threads=1))


@pytest.mark.parametrize("options", [{"repeat": 0}, {"repeat": 1.5}, {"warmup": -1}, {"num_threads": 0}])
def test_benchmark_options(module, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        module.benchmark(**options)


def test_profile(module):
    profile = module.profile(repeat=5)
    assert [row.layer for row in profile.rows] == ["layer_multiply", "layer_cast", "layer_add", "layer_relu"]
    assert sum(row.share for row in profile.rows) == pytest.approx(1)
    for row in profile.rows:
        assert row.gmacs_per_s == pytest.approx(24 / (row.us * 1e3))
    assert profile.kernels_us == pytest.approx(sum(row.us for row in profile.rows))
    assert profile.activation_bytes >= 4 * 96
    assert profile.to_dict()["kernels_us"] == profile.kernels_us
    text = str(profile)
    assert "layer_relu" in text
    assert "sum of 4 kernel calls" in text
    assert "end to end without timers" in text


def test_a_profile_leaves_no_timers_behind(module, arrays):
    module.profile(repeat=1)
    module.capture(list(arrays))
    assert len(module.profile(repeat=1).rows) == 4


def test_capture_returns_every_kernels_output(module, arrays):
    product, cast, total, relu = module.capture(dict(zip(["data/image:0", "offset"], arrays, strict=True)))
    np.testing.assert_array_equal(product, arrays[0] * 2)
    np.testing.assert_array_equal(cast, arrays[1].astype(np.float32))
    np.testing.assert_array_equal(total, product + cast)
    np.testing.assert_array_equal(relu, np.maximum(total, 0))


def test_metadata_in_another_order_is_a_bug():
    module = build_module(kernels=[KernelRow("relu", "layer", "relu")])
    with pytest.raises(AssertionError, match="multiply"):
        module.profile(repeat=1)
    with pytest.raises(AssertionError, match="multiply"):
        module.capture()


def test_a_module_for_another_cpu_refuses_to_run():
    module = build_module(cpu_features=["sse2", "sse9"])
    with pytest.raises(TargetError, match="this CPU has no sse9"):
        module(F32, U8)


def test_repr_and_report(module):
    assert "data/image:0: float32[2, 3, 4]" in repr(module)
    assert module.report.summary == "1/2 convolution and dense layers in INT8; tuned 1/2"
    assert [info.name for info in module.outputs] == ["sum", "relu"]


@two_cpus
def test_num_threads():
    module = build_parallel_module(num_threads=1)
    assert module.profile(repeat=1).num_threads == 1
    assert threads_used(1) == 1
    assert threads_used(2) == 2
    assert threads_used(1) == 1
    module.num_threads = 2
    np.testing.assert_array_equal(module(np.ones((64, 64), np.float32))[0], np.full((64, 64), 2, np.float32))
    module.num_threads = 10_000
    assert module.benchmark(repeat=1).num_threads == len(usable_cpus())
    with pytest.raises(ConfigError, match="num_threads"):
        module.num_threads = 0


def threads_used(count: int) -> int:
    return run_on_threads(tvm.get_global_func("runtime.NumThreads"), count)


@two_cpus
def test_the_callers_affinity_is_left_alone():
    before = os.sched_getaffinity(0)
    for count in (1, 2):
        run_on_threads(lambda: None, count)
        assert os.sched_getaffinity(0) == before


@two_cpus
def test_a_pool_that_is_too_small_is_replaced():
    counts = []

    def work():
        tvm.get_global_func("runtime.config_threadpool")(-3, 1, ["0"])  # as if something else had used one thread
        counts.extend(threads_used(count) for count in (2, 1, 2))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert counts == [2, 1, 2]


@two_cpus
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_works_after_a_fork():
    module, x = build_parallel_module(num_threads=2), np.ones((64, 64), np.float32)
    module(x)
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if (module(x)[0] == 2).all() and (module(x)[0] == 2).all() else 1)
        except BaseException:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0


def test_calls_from_many_threads_take_turns(module):
    failures = []

    def work(value: int) -> None:
        for _ in range(100):
            total = module(np.full(SHAPE, value, np.float32), np.full(SHAPE, value, np.uint8))[0]
            if not (total == 3 * value).all():
                failures.append(value)

    threads = [threading.Thread(target=work, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize("offset", [0, 16, 4])
def test_inputs_are_read_in_place_where_they_can_be(offset):
    """Whatever their alignment, results are the same; modules that are content with 16 bytes copy fewer."""
    module = build_parallel_module(input_alignment=64)
    memory = np.zeros(64 * 64 * 4 + 128, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    x = memory[start : start + 64 * 64 * 4].view(np.float32).reshape(64, 64)
    for value in (1, 3):
        x[:] = value
        assert (module(x)[0] == 2 * value).all()
    assert (module(x.T[::-1])[0] == 6).all()
    assert (module(np.broadcast_to(np.float32(5), (64, 64)))[0] == 10).all()
    x.flags.writeable = False
    assert (module(x)[0] == 6).all()
