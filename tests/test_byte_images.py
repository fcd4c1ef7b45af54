"""compile(input_dtype="uint8"): images of bytes, against ONNX Runtime on the float model and normalised images."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import tvm_int8
from tests.frontend.running import run_onnx
from tests.small_networks import NETWORKS, Network
from tvm_int8.errors import CalibrationError, ConfigError
from tvm_int8.quantization.sqnr import sqnr_db
from tvm_int8.runtime.arguments import InputError

MEAN, STD = (123.7, 116.3, 103.5), (58.4, 57.1, 57.4)
OPTIONS = {"input_dtype": "uint8", "progress": False}


def draw(model, count, seed):
    """Smooth images of bytes, over their whole range."""
    rng = np.random.default_rng(seed)
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    images = rng.standard_normal((count, *shape))
    images = images + np.roll(images, 1, 3) + np.roll(images, 1, 4) / 2
    return list(np.clip(128 + 50 * images, 0, 255).astype(np.uint8))


def normalised(image, mean, std):
    mean, std = (np.broadcast_to(np.float64(v), image.shape[1]).reshape(1, -1, 1, 1) for v in (mean, std))
    return ((image - mean) / std).astype(np.float32)


def reference(model, images, mean, std):
    name = model.graph.input[0].name
    return [array for image in images for array in run_onnx(model, {name: normalised(image, mean, std)})]


def outputs(module, images):
    return [np.array(array) for image in images for array in module(image)]


def noise(expected, found):
    return sqnr_db(*(np.concatenate([array.ravel() for array in arrays]) for arrays in (expected, found)))


def front(**kwargs):
    """A network with a front of its own: `of(net, name)` delivers what the rest reads."""

    def make(of, channels=3):
        net = Network(x=(1, channels, 22, 27))
        y = net.relu(of(net, "x"))
        y = net.relu(net.conv(net.add("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2]), 24))
        return net.finish(net.dense(net.add("Flatten", net.add("GlobalAveragePool", y)), 24, 10))

    return make(**kwargs)


def own_normalisation(net, x):
    """Bytes less their mean, divided, through a batch norm: what some models do themselves."""
    mean, std = (net.weight(np.float32(v).reshape(1, 3, 1, 1)) for v in (MEAN, STD))
    return net.conv(net.norm(net.add("Div", net.add("Sub", x, mean), std)), 16)


def branches(net, x):
    pool = net.add("MaxPool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    return net.concat(net.conv(x, 8), net.conv(x, 8, 5), net.conv(pool, 8, 1), x)


def transposed(net, x):
    return net.add("ConvTranspose", x, net.normal(3, 8, 3, 3, scale=0.2), channels=8, strides=[2, 2])


def flattened():
    net = Network(x=(2, 1, 9, 8))
    return net.finish(net.dense(net.relu(net.dense(net.add("Flatten", "x"), 72, 30)), 30, 10))


def pixel():
    net = Network(x=(4, 3, 1, 1))
    return net.finish(net.conv(net.relu(net.conv("x", 40, 1)), 10, 1))


def also_an_output():
    net = Network(x=(1, 3, 9, 8))
    return net.finish(net.conv(net.relu(net.conv("x", 40)), 10, 1), net.add("Identity", "x"))


CASES = {
    **{name: (NETWORKS[name], MEAN, STD) for name in ("residual", "mobile")},
    "four channels": (NETWORKS["inception"], (120.0, 110.5, 90.2, 127.5), 64.0),
    "five channels": (NETWORKS["activations"], 127.5, 127.5),
    "no padding": (lambda: front(of=lambda net, x: net.conv(x, 16, 1)), MEAN, STD),
    "depthwise": (lambda: front(of=lambda net, x: net.conv(net.conv(x, 3, groups=3), 16, 1)), MEAN, STD),
    "grey": (lambda: front(of=lambda net, x: net.conv(x, 16), channels=1), (99.4,), (31.0,)),
    "a mean outside of bytes": (lambda: front(of=lambda net, x: net.conv(x, 16)), (-20.0, 100.0, 300.0), 50.0),
    "a pool first": (
        lambda: front(of=lambda net, x: net.conv(net.add("MaxPool", x, kernel_shape=[2, 2]), 16)),
        MEAN,
        STD,
    ),
    "transposed": (lambda: front(of=transposed), MEAN, STD),
    "several readers": (lambda: front(of=branches), MEAN, STD),
    "scale only": (lambda: front(of=lambda net, x: net.conv(x, 16)), 0.0, 255.0),
    "dense": (flattened, (127.0,), (61.0,)),
    "one pixel": (pixel, MEAN, STD),
    "also an output": (also_an_output, MEAN, STD),
    "the model's own": (lambda: front(of=own_normalisation), None, None),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    make, mean, std = CASES[request.param]
    return make(), mean, std


def _or(mean, std):
    return 0.0 if mean is None else mean, 1.0 if std is None else std


def test_fp32(case):
    model, mean, std = case
    module = tvm_int8.compile(model, quantization=None, input_mean=mean, input_std=std, **OPTIONS)
    assert [info.dtype for info in module.inputs] == ["uint8"]
    images = draw(model, 2, 1)
    for expected, found in zip(reference(model, images, *_or(mean, std)), outputs(module, images), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3 * np.abs(expected).max())


def test_int8(case):
    """As exact as the module that takes floats."""
    model, mean, std = case
    calibration, images = draw(model, 16, 0), draw(model, 48, 1)
    module = tvm_int8.compile(model, calibration=calibration, input_mean=mean, input_std=std, **OPTIONS)
    mean, std = _or(mean, std)
    floats = [normalised(image, mean, std) for image in calibration]
    theirs = tvm_int8.compile(model, calibration=floats, progress=False)
    expected = reference(model, images, mean, std)
    found = noise(expected, outputs(module, images))
    assert found > noise(expected, outputs(theirs, [normalised(image, mean, std) for image in images])) - 1
    assert found > 25


def test_padded_images_are_packed_by_one_kernel_and_nothing_is_float():
    model = NETWORKS["residual"]()
    module = tvm_int8.compile(model, calibration=draw(model, 4, 0), input_mean=MEAN, input_std=STD, **OPTIONS)
    kernels = [row.kernel for row in module.metadata.kernels]
    assert kernels[0] == "pad_image_u8"
    assert kernels[1].startswith("conv2d_u8s8")


def test_a_first_layer_left_in_float_reads_normalised_floats():
    model = NETWORKS["residual"]()
    quantization = {"exclude": [model.graph.node[0].name]}
    images = draw(model, 8, 0)
    module = tvm_int8.compile(
        model, calibration=images, quantization=quantization, input_mean=MEAN, input_std=STD, **OPTIONS
    )
    assert "f32" in module.metadata.kernels[1].kernel
    assert noise(reference(model, images, MEAN, STD), outputs(module, images)) > 30


def test_the_normalisation_is_in_the_metadata():
    module = tvm_int8.compile(NETWORKS["mobile"](), quantization=None, input_mean=MEAN, input_std=255, **OPTIONS)
    assert module.metadata.quantization == {"input_mean": list(MEAN), "input_std": [255]}


def test_a_table_belongs_to_bytes(tmp_path):
    model = NETWORKS["mobile"]()
    images, normalisation = draw(model, 4, 0), {"input_mean": MEAN, "input_std": STD, **OPTIONS}
    table = tvm_int8.calibrate(model, images, **normalisation)
    table.save(tmp_path / "table.json")
    module = tvm_int8.compile(model, calibration=str(tmp_path / "table.json"), **normalisation)
    direct = tvm_int8.compile(model, calibration=images, **normalisation)
    np.testing.assert_array_equal(outputs(module, images[:1]), outputs(direct, images[:1]))


def test_calibration_without_data():
    model = NETWORKS["residual"]()
    with pytest.warns(UserWarning, match="No calibration data"):
        module = tvm_int8.compile(model, input_mean=MEAN, input_std=STD, **OPTIONS)
    images = draw(model, 4, 1)
    assert noise(reference(model, images, MEAN, STD), outputs(module, images)) > 15


def test_export_and_wrong_arrays(tmp_path):
    model = NETWORKS["mobile"]()
    images = draw(model, 4, 0)
    tvm_int8.compile(model, calibration=images, input_mean=MEAN, input_std=STD, **OPTIONS).export(tmp_path / "net.so")
    module = tvm_int8.load(tmp_path / "net.so")
    assert outputs(module, images[:1])[0].any()
    with pytest.raises(InputError, match="float32"):
        module(normalised(images[0], MEAN, STD))
    with pytest.raises(CalibrationError, match="float32"):
        tvm_int8.compile(model, calibration=[normalised(images[0], MEAN, STD)], **OPTIONS)


def vector_model():
    nodes = [helper.make_node("Relu", ["v"], ["y"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "vy"]
    graph = helper.make_graph(nodes, "vector", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"input_dtype": "int8"}, "input_dtype.*'int8'.*'uint8'"),
        ({"input_mean": MEAN}, "input_mean.*input_dtype='uint8'"),
        ({"input_std": 255.0}, "input_std.*input_dtype='uint8'"),
        ({"input_dtype": "uint8", "input_mean": (1.0, 2.0)}, "input_mean.*2 numbers.*3 channels"),
        ({"input_dtype": "uint8", "input_std": 0.0}, "input_std.*positive"),
    ],
)
def test_wrong_options(options, words):
    with pytest.raises(ConfigError, match=words):
        tvm_int8.compile(NETWORKS["mobile"](), quantization=None, **options)
    with pytest.raises(ConfigError, match=words):
        tvm_int8.calibrate(NETWORKS["mobile"](), [], **options)


def test_inputs_that_are_no_images():
    with pytest.raises(ConfigError, match=r"input 'v' is float32\[1, 4\]"):
        tvm_int8.compile(vector_model(), quantization=None, input_dtype="uint8")


def test_a_quantised_model_takes_bytes_too():
    """Bytes / 255 that the model quantises with the scale 1 / 255 are its integers."""
    pytest.importorskip("onnxruntime")
    net = Network(x=(1, 3, 12, 12))
    scale, zero = net.weight(np.float32(1 / 255)), net.weight(np.uint8(0))
    x = net.add("DequantizeLinear", net.add("QuantizeLinear", "x", scale, zero), scale, zero)
    weight = net.weight(net.rng.integers(-127, 128, (8, 3, 3, 3)).astype(np.int8))
    weight = net.add("DequantizeLinear", weight, net.weight(np.float32(0.01)), net.weight(np.int8(0)), channels=8)
    model: onnx.ModelProto = net.finish(net.add("Conv", x, weight, channels=8, pads=[1, 1, 1, 1]))
    module = tvm_int8.compile(model, input_std=255.0, **OPTIONS)
    assert "elementwise" not in module.metadata.kernels[0].kernel
    images = draw(model, 2, 1)
    for expected, found in zip(reference(model, images, 0.0, 255.0), outputs(module, images), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)
