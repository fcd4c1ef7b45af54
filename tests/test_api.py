"""The public functions: what compile, calibrate and load promise, and how they refuse."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import tvm_int8
from benchmarks.images import synthetic_images
from tests.frontend.running import run_onnx
from tests.small_networks import Network, draw
from tvm_int8 import (
    CalibrationError,
    CalibrationTable,
    ConfigError,
    ModelError,
    QuantizationConfig,
    TargetError,
    TvmInt8Error,
)
from tvm_int8.quantization.data_free import CalibrationWarning
from tvm_int8.quantization.sqnr import sqnr_db

SHAPE = (1, 3, 6, 6)


def small() -> onnx.ModelProto:
    """conv - relu - conv - global pool - dense, small enough to be compiled often."""
    net = Network(x=SHAPE)
    y = net.conv(net.relu(net.conv("x", 8)), 12, 1)
    return net.finish(net.dense(net.add("Flatten", net.add("GlobalAveragePool", y)), 12, 4))


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return small()


@pytest.fixture(scope="module")
def data(model) -> list[np.ndarray]:
    return [batch["x"] for batch in draw(model, 8, seed=0)]


@pytest.fixture(scope="module")
def table(model, data) -> CalibrationTable:
    return tvm_int8.calibrate(model, data, progress=False)


@pytest.fixture(scope="module")
def module(model, data):
    return tvm_int8.compile(model, calibration=data, progress=False)


@pytest.fixture(scope="module")
def x(model) -> np.ndarray:
    return draw(model, 1, seed=1)[0]["x"]


# Compiling


def test_metadata_describes_the_model(module):
    (given,), (delivered,) = module.inputs, module.outputs
    assert (given.name, tuple(given.shape), given.dtype) == ("x", SHAPE, "float32")
    assert (tuple(delivered.shape), delivered.dtype) == ((1, 4), "float32")
    assert module.metadata.quantization == {"ranges": "calibration"}


def test_report_says_what_became_of_each_layer(module):
    layers = {row.layer: row for row in module.report if row.precision == "int8" and "conv" in row.layer}
    assert list(layers) == ["/conv0", "/conv2"]
    assert all(row.sqnr_db > 20 for row in layers.values())
    assert module.report.summary.startswith("3/3 ")
    assert all(row.reason for row in module.report if row.precision != "int8")


def test_two_compilations_are_equal(model, data, module, x):
    again = tvm_int8.compile(model, calibration=data, progress=False)
    np.testing.assert_array_equal(again(x)[0], module(x)[0])
    assert [row.function for row in again.metadata.kernels] == [row.function for row in module.metadata.kernels]


def test_a_saved_table_compiles_to_the_same(model, table, module, x, tmp_path):
    path = tmp_path / "table.json"
    table.save(path)
    again = tvm_int8.compile(model, calibration=path)
    np.testing.assert_array_equal(again(x)[0], module(x)[0])
    assert all(row.sqnr_db > 15 for row in again.report if row.precision == "int8")


def test_calibration_data_may_be_a_file(model, data, module, x, tmp_path):
    np.save(tmp_path / "data.npy", np.concatenate(data))
    again = tvm_int8.compile(model, calibration=tmp_path / "data.npy", progress=False)
    np.testing.assert_array_equal(again(x)[0], module(x)[0])


def test_calibrators_differ(model, data, table):
    other = tvm_int8.calibrate(model, data, method="percentile", config={"percentile": 90}, progress=False)
    assert list(other) == list(table)
    assert other["x"].high < table["x"].high
    assert {r.method for r in other.values()} == {"percentile"}


def test_a_model_may_be_a_path_or_bytes(model, module, data, x, tmp_path):
    onnx.save(model, tmp_path / "net.onnx")
    for form in (tmp_path / "net.onnx", str(tmp_path / "net.onnx"), model.SerializeToString()):
        again = tvm_int8.compile(form, quantization=None)
        np.testing.assert_allclose(again(x)[0], run_onnx(model, {"x": x})[0], atol=1e-4)


def test_without_data_ranges_are_guessed_and_the_user_is_told(model, data):
    with pytest.warns(CalibrationWarning, match="No calibration data.*no batch norm") as caught:
        guessed = tvm_int8.compile(model)
    assert caught[0].filename == __file__
    assert guessed.metadata.quantization == {"ranges": "data-free"}
    assert guessed.report.summary.startswith("3/3 ")
    normalised = [x / x.std() for x in data]
    expected = np.concatenate([run_onnx(model, {"x": x})[0] for x in normalised])
    assert sqnr_db(expected, np.concatenate([guessed(x)[0] for x in normalised])) > 10


def trained_on_bytes(images: list[np.ndarray]) -> onnx.ModelProto:
    """conv - batch norm - relu, twice, with the statistics of these images."""
    net, y = Network(x=images[0].shape), "x"
    for channels in (8, 12):
        y = net.conv(y, channels)
        outputs = np.concatenate([run_onnx(net.finish(y), {"x": x})[0] for x in images])
        statistics = [net.weight(reduce(outputs, (0, 2, 3)).astype(np.float32)) for reduce in (np.mean, np.var)]
        gamma = net.weight(net.rng.uniform(0.5, 1.5, channels).astype(np.float32))
        y = net.relu(net.add("BatchNormalization", y, gamma, net.normal(channels), *statistics))
    return net.finish(net.dense(net.add("Flatten", net.add("GlobalAveragePool", y)), 12, 4))


def test_without_data_batch_norms_tell_the_range_of_the_inputs():
    images = [np.clip(58 * x + 115, 0, 255) for x in synthetic_images(16, (3, 24, 24))]
    model = trained_on_bytes(images[8:])
    with pytest.warns(CalibrationWarning, match=r"taken to be 0\.\.255, which fits the batch norms best"):
        guessed = tvm_int8.compile(model)
    misled = tvm_int8.compile(model, calibration=[(x - 115) / 58 for x in images[8:]], progress=False)
    expected = np.concatenate([run_onnx(model, {"x": x})[0] for x in images[:8]])
    good, bad = (sqnr_db(expected, np.concatenate([m(x)[0] for x in images[:8]])) for m in (guessed, misled))
    assert good > 25
    assert bad < 5


def test_excluded_layers_stay_in_float_and_the_report_says_why(model, data):
    module = tvm_int8.compile(model, calibration=data, quantization={"exclude": ["/conv0"]}, progress=False)
    rows = {row.layer: row for row in module.report if "conv" in row.op}
    assert (rows["/conv0"].precision, rows["/conv2"].precision) == ("float32", "int8")
    assert "excluded" in rows["/conv0"].reason
    assert module.report.summary.startswith("2/3 ")


def test_an_exclusion_that_matches_nothing_is_reported(model, table):
    with pytest.warns(UserWarning, match=r"/convX.*matches no layer"):
        tvm_int8.compile(model, calibration=table, quantization=QuantizationConfig(exclude=["/convX"]))


def test_one_method_per_tensor_or_layer(model, data):
    methods = {"x": "minmax", "/conv[0-1]": "entropy", "*": "auto"}
    table = tvm_int8.calibrate(model, data, config={"methods": methods}, progress=False)
    found = [r.method.split(": ")[0] for r in table.values()]
    assert (table["x"].method, found.count("entropy")) == ("minmax", 1)
    assert found.count("auto") == len(table) - 2 > 0
    with pytest.warns(UserWarning, match=r"methods entry '/convX' matches no quantised tensor"):
        tvm_int8.calibrate(model, data, config={"methods": {"/convX": "minmax"}}, progress=False)
    with pytest.warns(UserWarning, match=r"methods entry '/convX' matches no quantised tensor"):
        tvm_int8.compile(model, calibration=data, quantization={"methods": {"/convX": "minmax"}}, progress=False)


def test_the_method_comes_on_top_of_the_preset(model, data):
    assert {r.method for r in tvm_int8.calibrate(model, data, config="fast", progress=False).values()} == {"minmax"}
    table = tvm_int8.calibrate(model, data, "entropy", "fast", progress=False, keep_histograms=True)
    assert {r.method for r in table.values()} == {"entropy"}
    assert all(sum(r.histogram.counts) > 0 for r in table.values())


def test_symmetric_activations(model, data, table):
    symmetric = tvm_int8.compile(model, calibration=table, quantization={"activation_symmetric": True})
    asymmetric = tvm_int8.compile(model, calibration=table)
    inputs = [batch["x"] for batch in draw(model, 20, seed=1)]
    expected = np.concatenate([run_onnx(model, {"x": x})[0] for x in inputs])
    found = [np.concatenate([module(x)[0] for x in inputs]) for module in (symmetric, asymmetric)]
    assert not np.array_equal(*found)
    assert all(sqnr_db(expected, outputs) > 18 for outputs in found)


def test_one_scale_per_weight_tensor(model, table, module, x):
    coarse = tvm_int8.compile(model, calibration=table, quantization={"per_channel_weights": False})
    assert coarse.report.summary.startswith("3/3 ")
    assert not np.array_equal(coarse(x)[0], module(x)[0])


@pytest.mark.parametrize("threads", [1, 2])
def test_the_number_of_threads_is_kept(model, table, x, module, threads, tmp_path):
    again = tvm_int8.compile(model, calibration=table, num_threads=threads)
    assert again.num_threads == threads
    np.testing.assert_array_equal(again(x)[0], module(x)[0])
    again.export(tmp_path / "net.so")
    assert tvm_int8.load(tmp_path / "net.so").num_threads == threads


def test_an_exported_module_computes_the_same(module, x, tmp_path):
    module.export(tmp_path / "net.so")
    loaded = tvm_int8.load(tmp_path / "net.so")
    np.testing.assert_array_equal(loaded(x)[0], module(x)[0])
    assert list(loaded.report) == list(module.report)


@pytest.mark.parametrize("target", ["llvm -mcpu=cascadelake", "znver4", {"kind": "llvm", "mcpu": "icelake-server"}])
def test_targets_compute_the_same(model, table, module, x, target):
    from tvm_int8.target import missing_features, parse_target

    other = tvm_int8.compile(model, target=target, calibration=table)
    assert other.metadata.mcpu in str(target)
    if not missing_features(parse_target(target).features):
        np.testing.assert_array_equal(other(x)[0], module(x)[0])


def test_compiling_for_a_cpu_that_is_not_here(model, table):
    """Calibration runs on this machine, the result need not."""
    module = tvm_int8.compile(model, target="sapphirerapids", calibration=table)
    assert module.report.summary.startswith("3/3 ")


def test_several_inputs_and_outputs_keep_their_order_and_names():
    net = Network(image=(2, 3, 6, 6), scale=(2, 8))
    y = net.relu(net.conv("image", 8))
    gate = net.reshape(net.add("Sigmoid", net.dense("scale", 8, 8)), 2, 8, 1, 1)
    first = net.conv(net.add("Mul", y, gate), 5, 1)
    second = net.add("Flatten", net.add("GlobalAveragePool", net.conv(y, 4, 1)))
    model = net.finish(second, first)
    (inputs,), batches = draw(model, 1, seed=1), draw(model, 8, seed=0)
    module = tvm_int8.compile(model, calibration=batches, progress=False)
    assert [info.name for info in module.inputs] == ["image", "scale"]
    assert [info.name for info in module.outputs] == [second, first]
    found = module.run(inputs)
    for name, expected in zip((second, first), run_onnx(model, inputs), strict=True):
        assert found[name].shape == expected.shape
        assert np.abs(found[name] - expected).max() < 0.1 * np.abs(expected).max()


def test_an_output_may_go_on():
    net = Network(x=SHAPE)
    y = net.conv("x", 4)
    model = net.finish(y, net.relu(y))
    inputs = draw(model, 1, seed=1)[0]
    first, second = tvm_int8.compile(model, calibration=[inputs], progress=False)(inputs["x"])
    np.testing.assert_allclose(second, np.maximum(first, 0), atol=1e-6)


def dynamic() -> onnx.ModelProto:
    model = small()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    del model.graph.value_info[:]
    return model


def test_input_shapes_fix_what_is_symbolic(module, data):
    shapes = {"x": (4, 3, 6, 6)}
    wide = tvm_int8.compile(dynamic(), calibration=np.concatenate(data), input_shapes=shapes, progress=False)
    batch = np.concatenate(data[:4])
    assert tuple(wide.inputs[0].shape) == batch.shape
    (found,) = wide(batch)
    assert found.shape == (4, 4)
    np.testing.assert_array_equal(found[2], module(data[2])[0][0])


def test_integer_inputs_are_taken_as_they_are():
    """A uint8 image, cast and scaled by the model itself."""
    net = Network(image=SHAPE)
    y = net.add("Cast", "image", to=TensorProto.FLOAT)
    y = net.add("Mul", y, net.weight(np.float32(1 / 255)))
    y = net.conv(y, 5)
    model = net.finish(y)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    images = np.random.default_rng(0).integers(0, 256, (8, 3, 6, 6)).astype(np.uint8)
    module = tvm_int8.compile(model, calibration=images, progress=False)
    assert module.inputs[0].dtype == "uint8"
    expected = run_onnx(model, {"image": images[:1]})[0]
    assert np.abs(module(images[:1])[0] - expected).max() < 0.05 * np.abs(expected).max()
    with pytest.warns(CalibrationWarning):
        tvm_int8.compile(model)


# Refusing


def assert_actionable(error: TvmInt8Error, *words: str) -> None:
    assert error.where
    assert error.found
    assert error.expected
    assert error.action
    for word in words:
        assert word in str(error)


def x_of(value=0.0, shape=SHAPE, dtype=np.float32):
    return np.full(shape, value, dtype)


BAD_DATA = {
    "no data": ([], ["no batch", "100 to 500"]),
    "a name the model does not have": ([{"y": x_of()}], ["'x'", "missing"]),
    "an additional name": ([{"x": x_of(), "z": x_of()}], ["'z'", "unknown"]),
    "another shape": ([x_of(shape=(1, 3, 5, 5))], ["[1, 3, 5, 5]", "[1, 3, 6, 6]"]),
    "channels last": ([x_of(shape=(1, 6, 6, 3))], ["transpose"]),
    "no batch axis": ([x_of(shape=(3, 6, 6))], ["x[None]"]),
    "text": ([np.full(SHAPE, "a")], ["dtype"]),
    "complex": ([x_of(dtype=np.complex64)], ["complex64"]),
    "NaN": ([x_of(), x_of(np.nan)], ["batch 1", "NaN"]),
    "infinity": ([x_of(np.inf)], ["NaN or infinite"]),
    "a number": (7, ["int"]),
    "a missing file": ("/nowhere/data.npz", ["/nowhere/data.npz"]),
    "another file": ("/nowhere/data.txt", [".npz"]),
    "a missing table": ("/nowhere/table.json", ["/nowhere/table.json"]),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_calibration_data(model, name):
    data, words = BAD_DATA[name]
    with pytest.raises(CalibrationError) as caught:
        tvm_int8.compile(model, calibration=data, progress=False)
    assert_actionable(caught.value, *words)


def test_a_table_of_another_model(table):
    other = Network(seed=1, x=SHAPE)
    with pytest.raises(CalibrationError) as caught:
        tvm_int8.compile(other.finish(other.conv(other.conv("x", 4), 4)), calibration=table)
    assert_actionable(caught.value, "does not have")


def test_a_table_without_a_tensor(model, table):
    partial = CalibrationTable({name: table[name] for name in list(table)[1:]})
    with pytest.raises(CalibrationError) as caught:
        tvm_int8.compile(model, calibration=partial)
    assert_actionable(caught.value, repr(next(iter(table))))


BAD_OPTIONS = {
    "unknown option": ({"quantization": {"metod": "minmax"}}, ["metod", "did you mean 'method'"]),
    "unknown calibrator": ({"quantization": {"method": "magic"}}, ["magic", "percentile"]),
    "percentile of 5": ({"quantization": {"method": "percentile", "percentile": 5}}, ["percentile"]),
    "signed activations": ({"quantization": {"activation_dtype": "int8"}}, ["uint8"]),
    "no preset": ({"quantization": "int8"}, ["preset", "'int8'", "'fast', 'default', 'best'"]),
    "a number for quantization": ({"quantization": 8}, ["int", "the name of a preset"]),
    "threads: zero": ({"num_threads": 0}, ["num_threads", "0"]),
    "threads: text": ({"num_threads": "2"}, ["num_threads"]),
    "threads: True": ({"num_threads": True}, ["num_threads"]),
    "threads: a fraction": ({"num_threads": 1.5}, ["num_threads"]),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options(model, name):
    options, words = BAD_OPTIONS[name]
    with pytest.raises(ConfigError) as caught:
        tvm_int8.compile(model, **options)
    assert_actionable(caught.value, *words)


@pytest.mark.parametrize("target", ["llvm -mcpu=cascadelak", "cuda", "nehalem", 7, "", {"kind": "llvm"}])
def test_bad_targets(model, target):
    with pytest.raises(TargetError) as caught:
        tvm_int8.compile(model, target=target)
    assert_actionable(caught.value)


@pytest.mark.parametrize("shapes", [None, {"x": (1, 3, 6)}, {"x": (1, 4, 6, 6)}, {"y": SHAPE}, {"x": (0, 3, 6, 6)}])
def test_shapes_that_are_open_or_do_not_fit(shapes):
    with pytest.raises(TvmInt8Error) as caught:
        tvm_int8.compile(dynamic(), quantization=None, input_shapes=shapes)
    assert_actionable(caught.value, "y" if shapes and "y" in shapes else "x")


@pytest.mark.parametrize("broken", ["/nowhere/net.onnx", b"not a model", 7, None])
def test_models_that_cannot_be_read(broken):
    with pytest.raises(ModelError) as caught:
        tvm_int8.compile(broken, quantization=None)
    assert_actionable(caught.value)


def test_an_operator_nobody_knows():
    net = Network(x=SHAPE)
    net.nodes.append(helper.make_node("Frobnicate", ["x"], ["y"], "/odd", domain="example"))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in "xy")
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("example", 1)]
    model = helper.make_model(helper.make_graph(net.nodes, "odd", [x], [y]), opset_imports=domains, ir_version=8)
    with pytest.raises(ModelError) as caught:
        tvm_int8.compile(model, quantization=None)
    assert_actionable(caught.value, "Frobnicate", "/odd")


def test_weights_that_are_not_finite(table):
    model = small()
    weight = model.graph.initializer[0]
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[3] = np.nan
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    with pytest.raises(TvmInt8Error, match=r"[Nn]a[Nn]"):
        tvm_int8.compile(model, calibration=table)


def test_calibrating_a_quantised_model(model, data):
    """A QDQ model has its scales; compiling it ignores data with a warning, calibrating it is refused."""
    net = Network(x=SHAPE)
    scale, zero_point = net.weight(np.float32(0.05)), net.weight(np.uint8(128))
    y = net.add("DequantizeLinear", net.add("QuantizeLinear", "x", scale, zero_point), scale, zero_point)
    qdq = net.finish(net.conv(y, 4))
    with pytest.raises(CalibrationError) as caught:
        tvm_int8.calibrate(qdq, data)
    assert_actionable(caught.value, "QDQ")
    with pytest.warns(UserWarning, match="calibration is ignored"):
        module = tvm_int8.compile(qdq, calibration=data)
    assert module.metadata.quantization == {"ranges": "the model's own QDQ scales"}


def test_nothing_is_printed_and_nothing_warned_about(model, data, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tvm_int8.compile(model, calibration=data)
    assert capfd.readouterr() == ("", "")


def test_a_lowering_that_fails_is_one_clear_error(monkeypatch):
    def lower(*_):
        raise RuntimeError("Trace of TVM\nwhat it means: no such type")

    monkeypatch.setattr("tvm_int8.pipeline.lower", lower)
    net = Network(x=(1, 16, 8, 8))
    model = net.finish(net.relu("x"))
    with pytest.raises(TvmInt8Error, match="lowering: RuntimeError: what it means: no such type"):
        tvm_int8.compile(model, quantization=None, progress=False)
