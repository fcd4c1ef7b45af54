"""Other runtimes under one interface: ONNX Runtime FP32 and INT8, OpenVINO FP32 and NNCF INT8.

Every function takes the model, the calibration inputs and a number of threads, and returns a `Runner`; or an
`Absent` that says why there is none, when the runtime is not installed or cannot handle the network.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from benchmarks import onnx_graph

Infer = Callable[[np.ndarray], "list[np.ndarray]"]


@dataclass
class Runner:
    """A network ready to run.

    Attributes
    ----------
    name : str
        Runtime and precision, for tables.
    infer : callable
        Takes the network's one input and returns the list of its outputs.
    version : str
        Of the runtime.
    macs : int
        Multiply-adds of one run, where the runtime says; else 0.
    quantize_s : float
        Seconds that quantising took, where that was part of making the runner; else 0.
    """

    name: str
    infer: Infer
    version: str = ""
    macs: int = 0
    quantize_s: float = 0.0


@dataclass
class Absent:
    """A runtime that cannot take part, and the reason."""

    name: str
    reason: str


def ort_fp32(model: onnx.ModelProto, calibration: Sequence[np.ndarray], threads: int) -> Runner | Absent:
    """ONNX Runtime as a user gets it: all graph optimisations, `threads` intra-op threads."""
    return _ort_runner("ORT FP32", model, threads)


def ort_int8(
    model: onnx.ModelProto, calibration: Sequence[np.ndarray], threads: int, method: str = "MinMax"
) -> Runner | Absent:
    """ONNX Runtime on its own QDQ quantisation of the model (`quantize_ort`)."""
    start = time.perf_counter()
    try:
        quantized = quantize_ort(model, calibration, method)
    except ImportError as error:
        return Absent("ORT INT8", str(error))
    return _quantized_in(time.perf_counter() - start, _ort_runner("ORT INT8", quantized, threads))


def _quantized_in(seconds: float, made: Runner | Absent) -> Runner | Absent:
    return replace(made, quantize_s=seconds) if isinstance(made, Runner) else made


def _ort_runner(name: str, model: onnx.ModelProto, threads: int) -> Runner | Absent:
    try:
        import onnxruntime as ort
    except ImportError as error:
        return Absent(name, str(error))
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = session.get_inputs()[0].name
    return Runner(name, lambda x: session.run(None, {feed: x}), ort.__version__)


def quantize_ort(model: onnx.ModelProto, calibration: Sequence[np.ndarray], method: str = "MinMax") -> onnx.ModelProto:
    """Quantise with ``onnxruntime.quantization.quantize_static`` the way its documentation recommends for x86.

    QDQ format, s8 weights per output channel, u8 activations, after ONNX Runtime's own preparation of the graph (batch
    norm folded, shapes inferred). The model is raised to opset 13 first, which per-channel QuantizeLinear needs.

    Parameters
    ----------
    model : onnx.ModelProto
        With one input.
    calibration : sequence of numpy.ndarray
        Inputs to take the ranges from.
    method : str
        Of calibration: "MinMax", "Entropy" or "Percentile".

    Returns
    -------
    onnx.ModelProto
        With QuantizeLinear and DequantizeLinear nodes.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    feed = next(iter(onnx_graph.input_shapes(model)))
    verbosity = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # the quantiser logs advice that is already followed
    try:
        with tempfile.TemporaryDirectory() as folder:
            source, prepared, quantized = (Path(folder) / f"{stage}.onnx" for stage in ("source", "prepared", "int8"))
            onnx.save(onnx_graph.with_opset(model, 13), str(source))  # given a ModelProto, preparation fails on Reshape
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(quantized),
                _reader([{feed: x} for x in calibration]),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod[method],
            )
            return onnx.load(str(quantized))
    finally:
        logging.getLogger().setLevel(verbosity)


def _reader(feeds: list[dict[str, np.ndarray]]):
    """Wrap the feeds in what ONNX Runtime's calibration reads from."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.remaining = iter(feeds)

        def get_next(self):
            return next(self.remaining, None)

    return Reader()


def openvino_fp32(model: onnx.ModelProto, calibration: Sequence[np.ndarray], threads: int) -> Runner | Absent:
    """OpenVINO in its latency mode, inference precision held at FP32."""
    try:
        import openvino
    except ImportError as error:
        return Absent("OpenVINO FP32", str(error))
    return _openvino_runner("OpenVINO FP32", openvino.Core().read_model(model.SerializeToString()), threads)


def nncf_int8(model: onnx.ModelProto, calibration: Sequence[np.ndarray], threads: int) -> Runner | Absent:
    """OpenVINO on NNCF's default post-training quantisation."""
    try:
        import nncf
        import openvino
    except ImportError as error:
        return Absent("OpenVINO INT8", str(error))
    graph = openvino.Core().read_model(model.SerializeToString())
    start = time.perf_counter()
    try:
        graph = nncf.quantize(graph, nncf.Dataset(list(calibration)), subset_size=len(calibration))
    except Exception as error:  # whatever NNCF raises, the comparison goes on without it
        return Absent("OpenVINO INT8", f"{type(error).__name__}: {error}".splitlines()[0])
    return _quantized_in(time.perf_counter() - start, _openvino_runner("OpenVINO INT8", graph, threads))


def _openvino_runner(name: str, graph, threads: int) -> Runner | Absent:
    import openvino

    options = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    try:
        request = openvino.Core().compile_model(graph, "CPU", options).create_infer_request()
    except RuntimeError as error:
        return Absent(name, str(error).splitlines()[0])

    def infer(x: np.ndarray) -> list[np.ndarray]:
        request.infer([x], share_inputs=True)
        return [np.array(tensor.data) for tensor in request.output_tensors]

    return Runner(name, infer, openvino.__version__)


PEERS = {"ort_fp32": ort_fp32, "ort_int8": ort_int8, "openvino_fp32": openvino_fp32, "openvino_int8": nncf_int8}
"""Name on the command line to the function that makes the runner."""

INT8_PEERS = ("ort_int8", "openvino_int8")
"""Those whose better one is what this project's INT8 is measured by."""
