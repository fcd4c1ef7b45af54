import json
import subprocess
import sys
import warnings

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import tvm_int8
from tests.cli_testing import assert_one_line_error, run
from tests.runtime_module import SHAPE, build_module
from tvm_int8.cli import main
from tvm_int8.metadata import TensorInfo
from tvm_int8.runtime import load

F32, U8 = np.full(SHAPE, 3, np.float32), np.full(SHAPE, 5, np.uint8)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "net.so"
    build_module().export(path)
    return str(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A convolution, ReLU and global pooling with an open batch size."""
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.standard_normal((8, 3, 3, 3)).astype(np.float32), "weight")
    nodes = [
        helper.make_node("Conv", ["image", "weight"], ["conv"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["relu"], "relu1"),
        helper.make_node("GlobalAveragePool", ["relu"], ["out/pooled"], "pool1"),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])
    output = helper.make_tensor_value_info("out/pooled", TensorProto.FLOAT, ["batch", 8, 1, 1])
    graph = helper.make_graph(nodes, "net", [image], [output], [weight])
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return str(path)


def test_run_writes_outputs_under_their_names(capsys, library, tmp_path):
    np.savez(tmp_path / "x.npz", **{"data/image:0": F32, "offset": U8})
    code, out, err = run(capsys, "run", library, "--input", tmp_path / "x.npz", "--output", tmp_path / "out.npz")
    assert (code, err) == (0, "")
    assert "sum: float32[2, 3, 4]  min 11, max 11, mean 11" in out
    with np.load(tmp_path / "out.npz") as outputs:
        assert set(outputs.files) == {"sum", "relu"}
        np.testing.assert_array_equal(outputs["sum"], 2 * F32 + U8)


def test_output_names_of_any_kind(capsys, tmp_path):
    names = ["file", "/model/out:0"]
    build_module(outputs=[TensorInfo(name, SHAPE, "float32") for name in names]).export(tmp_path / "net.so")
    assert run(capsys, "run", tmp_path / "net.so", "--output", tmp_path / "out.npz")[0] == 0
    with np.load(tmp_path / "out.npz") as outputs:
        assert list(outputs.files) == names
        assert all(outputs[name].shape == SHAPE for name in names)


def test_run_measures(capsys, library):
    code, out, _ = run(capsys, "run", library, "--benchmark", "--profile", "--threads", 1)
    assert code == 0
    assert "runs on 1 thread)" in out
    assert "layer_multiply" in out


def test_run_errors(capsys, library, tmp_path):
    np.save(tmp_path / "x.npy", F32)
    np.savez(tmp_path / "x.npz", image=F32, offset=U8)
    (tmp_path / "bad.npz").write_bytes(b"PK")
    assert_one_line_error(run(capsys, "run", library, "--input", tmp_path / "x.npy"), "data/image:0, offset")
    assert_one_line_error(run(capsys, "run", library, "--input", tmp_path / "x.npz"), "unknown 'image'")
    assert_one_line_error(run(capsys, "run", library, "--input", tmp_path / "bad.npz"), "cannot be read")
    assert_one_line_error(run(capsys, "run", library, "--input", tmp_path / "none.npz"), "No such file")
    assert_one_line_error(run(capsys, "run", tmp_path / "none.so"), "none.so", "No such file")
    code, _, err = run(capsys, "run", library, "--output", tmp_path / "none" / "out.npz")
    assert (code, err.count("\n")) == (2, 1)


def test_inspect_library(capsys, library):
    code, out, _ = run(capsys, "inspect", library)
    assert code == 0
    assert "input   data/image:0: float32[2, 3, 4]" in out
    assert "1/2 convolution and dense layers in INT8" in out
    document = json.loads(run(capsys, "inspect", library, "--json")[1])
    assert document["mcpu"] == "x86-64-v4"
    assert [row["layer"] for row in document["layers"]] == [row.layer for row in load(library).report]
    assert document["summary"] == load(library).report.summary


def test_inspect_library_of_another_cpu(capsys, tmp_path):
    build_module(cpu_features=["sse9"]).export(tmp_path / "net.so")
    assert "needs sse9" in run(capsys, "inspect", tmp_path / "net.so")[1]
    assert_one_line_error(run(capsys, "run", tmp_path / "net.so"), "this CPU has no sse9")


def test_inspect_model(capsys, model, tmp_path):
    code, out, _ = run(capsys, "inspect", model)
    assert code == 0
    assert "input   image: float32[batch, 3, 8, 8]" in out
    assert "1 Conv" in out
    document = json.loads(run(capsys, "inspect", model, "--json")[1])
    assert document["operators"] == {"Conv": 1, "Relu": 1, "GlobalAveragePool": 1}
    assert document["weights"] == 216
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    assert_one_line_error(run(capsys, "inspect", tmp_path / "bad.onnx"), "bad.onnx")


@pytest.fixture
def calls(monkeypatch):
    """What the command line passes on to `tvm_int8.compile` and `tvm_int8.calibrate`."""
    calls = []

    def compile(model, **options):
        calls.append((model, options))
        return build_module()

    class Table(dict):
        def save(self, path):
            calls.append(path)

    def calibrate(*arguments, **options):
        calls.append((*arguments, options))
        return Table(x=1)

    monkeypatch.setitem(vars(tvm_int8), "compile", compile)
    monkeypatch.setitem(vars(tvm_int8), "calibrate", calibrate)
    return calls


def test_compile_passes_options_on(capsys, calls, tmp_path):
    path = tmp_path / "net.so"
    code, out, _ = run(capsys, "compile", "m.onnx", "-o", path)
    assert code == 0
    assert "1/2 convolution and dense layers in INT8" in out
    assert f"wrote {path}" in out
    assert load(path).metadata.mcpu == "x86-64-v4"
    options = ["--target", "llvm -mcpu=znver4", "--calibration", "x.npz", "--method", "percentile", "--threads", 3]
    options += ["--input-shape", "a=b=1,3", "--input-shape", "c=7", "--report"]
    options += ["--input-dtype", "uint8", "--input-mean", "123.7,116.3,103.5", "--input-std", "255"]
    run(capsys, "compile", "m.onnx", "-o", path, *options)
    run(capsys, "compile", "m.onnx", "-o", path, "--float32")
    assert calls[0] == ("m.onnx", dict(target="native", calibration=None, num_threads=None))
    assert calls[1][1] == dict(
        target="llvm -mcpu=znver4",
        calibration="x.npz",
        num_threads=3,
        quantization=tvm_int8.QuantizationConfig(method="percentile"),
        input_shapes={"a=b": (1, 3), "c": (7,)},
        input_dtype="uint8",
        input_mean=(123.7, 116.3, 103.5),
        input_std=(255.0,),
    )
    assert calls[2][1] == dict(target="native", calibration=None, num_threads=None, quantization=None)
    run(capsys, "compile", "m.onnx", "-o", path, "--preset", "best")
    run(capsys, "compile", "m.onnx", "-o", path, "--preset", "fast", "--method", "entropy")
    assert calls[3][1]["quantization"] == tvm_int8.QuantizationConfig.preset("best")
    assert calls[4][1]["quantization"] == tvm_int8.QuantizationConfig.preset("fast", method="entropy")


def test_calibrate_passes_options_on(capsys, calls):
    options = ["--method", "minmax", "--input-shape", "x=1,2", "--input-dtype", "uint8", "--input-mean", "127.5"]
    run(capsys, "calibrate", "m.onnx", "x.npz", "-o", "t.json", *options)
    code, out, _ = run(capsys, "calibrate", "m.onnx", "x.npz", "-o", "t.json")
    assert (code, out) == (0, "wrote t.json (1 tensors)\n")
    config = tvm_int8.QuantizationConfig(method="minmax")
    expected = dict(config=config, input_shapes={"x": (1, 2)}, input_dtype="uint8", input_mean=(127.5,))
    assert calls[0] == ("m.onnx", "x.npz", expected)
    assert calls[1:] == ["t.json", ("m.onnx", "x.npz", {}), "t.json"]
    options = ["--preset", "best", "--method", "mse", "--keep-histograms"]
    run(capsys, "calibrate", "m.onnx", "x.npz", "-o", "t.json", *options)
    config = tvm_int8.QuantizationConfig.preset("best", method="mse")
    assert calls[4] == ("m.onnx", "x.npz", dict(config=config, keep_histograms=True))


def test_single_options_of_quantisation_are_passed_on(capsys, calls, tmp_path):
    options = ["--exclude", "/head/*", "--exclude", "fc", "--min-sqnr-db", 30, "--max-slowdown", 0.1]
    run(capsys, "compile", "m.onnx", "-o", tmp_path / "net.so", *options, "--winograd", "off")
    given = dict(exclude=["/head/*", "fc"], min_sqnr_db=30.0, max_slowdown=0.1, winograd="off")
    expected = tvm_int8.QuantizationConfig(**given)
    assert calls[0][1]["quantization"] == expected


def test_errors_are_one_line(capsys, calls, tmp_path, monkeypatch):
    path = tmp_path / "net.so"
    conflict = run(capsys, "compile", "m.onnx", "-o", path, "--float32", "--method", "minmax")
    assert_one_line_error(conflict, "--float32")
    conflict = run(capsys, "compile", "m.onnx", "-o", path, "--float32", "--preset", "fast")
    assert_one_line_error(conflict, "options of quantisation")
    assert_one_line_error(run(capsys, "compile", "m.onnx", "-o", tmp_path / "none" / "net.so"), "cannot be written")

    def fail(*_, **__):
        raise RuntimeError("first\nsecond")

    monkeypatch.setitem(vars(tvm_int8), "compile", fail)
    assert_one_line_error(run(capsys, "compile", "m.onnx", "-o", path), "unexpected RuntimeError: first second")
    code, _, err = run(capsys, "compile", "m.onnx", "-o", path, "--debug")
    assert code == 2
    assert "Traceback" in err
    assert err.endswith("report it\n")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["frobnicate"],
        ["compile"],
        ["compile", "m.onnx"],
        ["compile", "m.onnx", "-o", "x.so", "--colour"],
        ["compile", "m.onnx", "-o", "x.so", "--threads", "0"],
        ["compile", "m.onnx", "-o", "x.so", "--method", "guess"],
        ["calibrate", "m.onnx", "x.npz", "-o", "t.json", "--preset", "fastest"],
        ["compile", "m.onnx", "-o", "x.so", "--input-shape", "1,3"],
        ["compile", "m.onnx", "-o", "x.so", "--input-shape", "x=1,-3"],
        ["compile", "m.onnx", "-o", "x.so", "--input-dtype", "int8"],
        ["compile", "m.onnx", "-o", "x.so", "--input-dtype", "uint8", "--input-mean", "1,dark"],
        ["quantize", "m.onnx"],
    ],
)
def test_usage_errors(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_warnings_are_one_line(capsys, calls, tmp_path, monkeypatch):
    def warn(model, **options):
        warnings.warn("no calibration\ndata", stacklevel=1)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        return build_module()

    monkeypatch.setitem(vars(tvm_int8), "compile", warn)
    code, _, err = run(capsys, "compile", "m.onnx", "-o", tmp_path / "net.so")
    assert (code, err) == (0, "tvm-int8: warning: no calibration data\n")


def test_python_m(library):
    command = [sys.executable, "-m", "tvm_int8", "inspect", library]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("input   data/image:0")


@pytest.mark.isa("avx512vnni")
def test_from_model_to_outputs(capsys, model, tmp_path):
    data, table, path = tmp_path / "data.npz", tmp_path / "table.json", tmp_path / "net.so"
    samples = np.random.default_rng(0).standard_normal((8, 3, 8, 8)).astype(np.float32)
    np.savez(data, image=samples)
    np.save(tmp_path / "x.npy", samples[:1])
    shape = ["--input-shape", "image=1,3,8,8"]
    assert run(capsys, "calibrate", model, data, "-o", table, *shape)[0] == 0
    outputs = []
    for options in (["--float32"], ["--calibration", table, "--target", "cascadelake"], ["--calibration", data]):
        code, out, err = run(capsys, "compile", model, "-o", path, *shape, *options)
        assert (code, err) == (0, "")
        assert ("0/1 conv" if "--float32" in options else "1/1 conv") in out
        code, out, err = run(
            capsys, "run", path, "--input", tmp_path / "x.npy", "--output", tmp_path / "y.npz", "--profile"
        )
        assert (code, err) == (0, "")
        with np.load(tmp_path / "y.npz") as arrays:
            outputs.append(arrays["out/pooled"])
    for int8 in outputs[1:]:
        np.testing.assert_allclose(int8, outputs[0], rtol=0.05, atol=0.02 * np.abs(outputs[0]).max())
    np.testing.assert_array_equal(outputs[1], outputs[2])
    assert_one_line_error(run(capsys, "compile", model, "-o", path), "symbolic")
    assert_one_line_error(run(capsys, "compile", model, "-o", path, *shape, "--target", "nehalem"), "nehalem")


def test_images_of_bytes(capsys, model, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (8, 3, 8, 8), np.uint8)
    np.savez(tmp_path / "data.npz", image=images)
    np.save(tmp_path / "x.npy", images[:1])
    np.save(tmp_path / "floats.npy", images[:1].astype(np.float32))
    options = ["--input-shape", "image=1,3,8,8", "--calibration", tmp_path / "data.npz"]
    normalised = [
        *options,
        "--input-dtype",
        "uint8",
        "--input-mean",
        "123.7,116.3,103.5",
        "--input-std",
        "58.4,57.1,57.4",
    ]
    code, _, err = run(capsys, "compile", model, "-o", tmp_path / "net.so", *normalised)
    assert (code, err) == (0, "")
    assert "input   image: uint8[1, 3, 8, 8]" in run(capsys, "inspect", tmp_path / "net.so")[1]
    assert run(capsys, "run", tmp_path / "net.so", "--input", tmp_path / "x.npy")[0] == 0
    assert run(capsys, "run", tmp_path / "net.so")[0] == 0
    assert_one_line_error(
        run(capsys, "run", tmp_path / "net.so", "--input", tmp_path / "floats.npy"), "float32", "uint8"
    )
    wrong = [*options, "--input-dtype", "uint8", "--input-mean", "1,2"]
    assert_one_line_error(run(capsys, "compile", model, "-o", tmp_path / "net.so", *wrong), "input_mean", "2 numbers")
    assert_one_line_error(
        run(capsys, "compile", model, "-o", tmp_path / "net.so", *options, "--input-mean", "1"), "input_dtype='uint8'"
    )
