"""ByteInputs: float images become bytes and a normalisation; what InsertQdq and OrderKernels make of it."""

import numpy as np
import pytest
from tvm import relax

from tests.passes.pass_testing import call_named, const, module, ops, run
from tvm_int8 import pipeline
from tvm_int8.config import QuantizationConfig
from tvm_int8.errors import ConfigError, register_with_tvm
from tvm_int8.kernel_op import constants_of, is_kernel, spec_of
from tvm_int8.passes.byte_images import pixels_of
from tvm_int8.passes.byte_inputs import ByteInputs
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.insert_qdq import InsertQdq
from tvm_int8.passes.quantization_plan import plan_quantization
from tvm_int8.quantization.calibration_table import CalibrationTable, TensorRange
from tvm_int8.quantization.sqnr import sqnr_db
from tvm_int8.reference.network import run_network
from tvm_int8.specs import Conv2d, Window2d

register_with_tvm()
op = relax.op
SHAPE = (1, 3, 8, 9)
MEAN, STD = (123.7, 116.3, 103.5), (58.4, 57.1, 57.4)


def convolution(padding=1, channels=3, groups=1, out=5, front=None):
    def body(emit, x):
        y = x if front is None else front(emit, x)
        return emit(
            op.nn.relu(emit(op.nn.conv2d(y, const(out, channels // groups, 3, 3), padding=padding, groups=groups)))
        )

    return module(body, x=(1, channels, 8, 9))


def images(shape=SHAPE, seed=3):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def normalised(image, mean=MEAN, std=STD):
    mean, std = (np.broadcast_to(np.float64(v), image.shape[1]).reshape(1, -1, 1, 1) for v in (mean, std))
    return ((image - mean) / std).astype(np.float32)


@pytest.mark.parametrize(
    ("mean", "std", "expected"),
    [
        (MEAN, STD, ["dequantize", "multiply", "add"]),
        (None, None, ["dequantize"]),
        (127.5, None, ["dequantize", "add"]),
        (None, 255, ["dequantize", "multiply"]),
    ],
)
def test_the_normalisation(mean, std, expected):
    before = convolution()
    text = before.script()
    after = ByteInputs(mean, std)(before)
    assert before.script() == text
    relax.analysis.well_formed(after)
    assert ops(after)[: len(expected) + 2] == [*expected, "nn.conv2d", "nn.relu"]
    assert [str(param.ty.dtype) for param in after["main"].params] == ["uint8"]
    image = images()
    found = run(after, image)
    wanted = run(before, normalised(image, 0 if mean is None else mean, 1 if std is None else std))
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-4)


def test_names_stay():
    before = module(
        lambda emit, x_bytes: emit(op.nn.relu(x_bytes), "x_bytes_scaled"), {"x_bytes_scaled": "/relu"}, x_bytes=SHAPE
    )
    attrs = ByteInputs(0.0, 2.0)(before)["main"].attrs
    assert list(attrs["input_names"]) == ["x_bytes"]
    assert dict(attrs["layer_names"])["x_bytes_scaled"] == "/relu"
    assert set(dict(attrs["layer_names"]).values()) == {"/relu", "x_bytes"}


@pytest.mark.parametrize(
    ("mean", "std", "words"),
    [
        ((1, 2), None, "input_mean.*2 numbers.*3 channels of input 'x'"),
        (None, (1, 2, 3, 4), "input_std.*4 numbers"),
        (None, (1, 0, 1), "input_std.*positive"),
        (None, -1.0, "input_std.*positive"),
        ("dark", None, "input_mean.*'dark'.*number"),
        (float("nan"), None, "input_mean.*finite"),
    ],
)
def test_wrong_numbers(mean, std, words):
    with pytest.raises(ConfigError, match=words):
        ByteInputs(mean, std)(convolution())


def test_inputs_that_are_no_images():
    with pytest.raises(ConfigError, match=r"input_dtype.*'x' is float32\[1, 3\].*images"):
        ByteInputs()(module(lambda emit, x: emit(op.nn.relu(x)), x=(1, 3)))
    with pytest.raises(ConfigError, match=r"input_dtype.*'x' is uint8"):
        ByteInputs()(module(lambda emit, x: emit(op.astype(x, "float32")), dtype="uint8", x=SHAPE))


# Quantised


def quantised(before, mean=MEAN, std=STD, reach=2.5):
    """(canonical float network of bytes, its kernel orders)."""
    mod = pipeline.canonical_float()(ByteInputs(mean, std)(before))
    points = plan_quantization(Dataflow(mod), QuantizationConfig()).points()
    table = CalibrationTable({var.name: TensorRange(-reach, reach, "minmax", 1) for var in points})
    return mod, pipeline.order()(InsertQdq(table, QuantizationConfig())(mod))


def kernels(ordered):
    return [(spec_of(b.value), dict(constants_of(b.value))) for b in Dataflow(ordered).bindings if is_kernel(b.value)]


def assert_close(mod, ordered, at_least=35):
    """Orders against the float network, on random bytes."""
    image = images(tuple(int(d) for d in mod["main"].params[0].ty.shape))
    assert sqnr_db(run(mod, image)[0], run_network(ordered, image)[0]) > at_least


def test_a_convolution_that_pads_reads_bytes_with_their_means_around():
    mod, ordered = quantised(convolution())
    (pad, border), (conv, constants) = kernels(ordered)
    assert isinstance(pad, Window2d)
    assert isinstance(conv, Conv2d)
    np.testing.assert_array_equal(border["pad"], [124, 116, 104])  # rounded half to even
    assert (conv.padding, conv.inputs[0].shape, conv.inputs[0].dtype) == ((0,) * 4, (1, 3, 10, 11), "uint8")
    assert constants["bias"].any()
    assert_close(mod, ordered)


def test_one_that_does_not_pad_reads_bytes():
    mod, ordered = quantised(convolution(padding=0))
    ((conv, _),) = kernels(ordered)
    assert conv.inputs[0].dtype == "uint8"
    assert_close(mod, ordered)


def test_equal_zero_points_are_the_convolutions_own_padding():
    mod, ordered = quantised(convolution(), mean=127.5, std=(50.0, 60.0, 70.0))
    ((conv, _),) = kernels(ordered)
    assert (conv.pad_value, conv.padding) == (128, (1, 1, 1, 1))
    assert_close(mod, ordered)


def test_a_depthwise_convolution_pads_by_channel():
    mod, ordered = quantised(convolution(groups=3, out=3))
    ((conv, constants),) = kernels(ordered)
    assert conv.pad_value is None
    np.testing.assert_array_equal(constants["pad"], [124, 116, 104])
    assert_close(mod, ordered)


@pytest.mark.parametrize(
    ("before", "mean"),
    [
        (convolution(channels=6), (100, 101, 102, 103, 104, 105)),
        (convolution(channels=4, groups=2, out=6), (100, 101, 102, 103)),
        (convolution(), (-30, 10, 300)),
        (convolution(front=lambda emit, x: emit(op.nn.max_pool2d(x, (2, 2), (1, 1)))), MEAN),
        (convolution(front=lambda emit, x: emit(op.multiply(x, x))), MEAN),
    ],
    ids=["many channels", "groups", "means outside of bytes", "a pool first", "a product first"],
)
def test_what_cannot_read_bytes_requantises_them(before, mean):
    std = 58.0 if len(mean) != 3 else STD
    _, ordered = quantised(before, mean, std)
    first = kernels(ordered)[0][0]
    assert (first.inputs[0].dtype, first.output.dtype) == ("uint8", "uint8")
    assert not [spec for spec, _ in kernels(ordered) if spec.inputs[0].dtype == "float32"]


def test_several_readers():
    def both(emit, x):
        left = emit(op.nn.conv2d(x, const(4, 3, 3, 3), padding=1))
        right = emit(op.nn.conv2d(x, const(4, 3, 5, 5, seed=2), padding=2))
        return emit(op.nn.relu(emit(op.add(left, right))))

    mod, ordered = quantised(module(both, x=SHAPE), reach=20.0)
    assert [type(spec).__name__ for spec, _ in kernels(ordered)] == ["Window2d", "Conv2d", "Window2d", "Conv2d"]
    assert_close(mod, ordered, at_least=25)

    def another(emit, x):
        y = emit(op.nn.conv2d(x, const(3, 3, 3, 3), padding=1))
        return emit(
            op.nn.conv2d(emit(op.add(y, emit(op.nn.max_pool2d(x, (3, 3), (1, 1), padding=1)))), const(4, 3, 1, 1))
        )

    _, ordered = quantised(module(another, x=SHAPE))
    assert kernels(ordered)[0][0].output.dtype == "uint8"


def test_the_models_own_normalisation_is_folded_too():
    """Subtraction, division and a batch norm, which all scale with the convolution's weights."""

    def front(emit, x):
        y = emit(op.divide(emit(op.subtract(x, const(1, 3, 1, 1))), relax.const(0.25, "float32")))
        statistics = [const(3, low=0.5, high=1.5, seed=seed) for seed in range(4)]
        return emit(relax.TupleGetItem(emit(op.nn.batch_norm(y, *statistics, axis=1, training=False)), 0))

    mod, ordered = quantised(convolution(front=front), None, 255.0)
    assert ops(mod).count("multiply") == ops(mod).count("add") == 1
    assert all(spec.inputs[0].dtype == "uint8" for spec, _ in kernels(ordered))


def test_pixels():
    mod = pipeline.canonical_float()(ByteInputs((123.7, 20.0, 300.0), (50.0, 2.0, 4.0))(convolution()))
    flow = Dataflow(mod)
    call = call_named(mod, "nn.conv2d")
    pixels = pixels_of(flow, call.args[0])
    np.testing.assert_allclose(pixels.scale, [1 / 50, 1 / 2, 1 / 4], rtol=1e-6)
    np.testing.assert_array_equal(pixels.zero_point, [124, 20, 255])
    np.testing.assert_allclose(pixels.rest, [-0.3, 0.0, 45.0], atol=1e-4)
    image = images((1, 3, 1, 1))
    real = pixels.scale * (image.ravel() - pixels.zero_point - pixels.rest)
    np.testing.assert_allclose(real, normalised(image, (123.7, 20.0, 300.0), (50.0, 2.0, 4.0)).ravel(), rtol=1e-5)
    assert pixels.mean(real) == pytest.approx(image.ravel() - pixels.zero_point)
