"""The command ``tvm-int8``: parses, calls the public functions, prints. Exit code 0, or 2 for any error."""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

import tvm_int8

from .cli_allocate import add_allocate
from .cli_analyze import add_analyze
from .cli_config import add_config, config_of
from .cli_finetune import add_finetune
from .cli_quantize import RUNTIMES, add_quantize, add_runtime
from .cli_tuning import add_logs, add_tune, add_worker
from .errors import ConfigError, TvmInt8Error

_USAGE_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        By default those of the process.

    Returns
    -------
    int
        The exit code: 0, or 2 after an error, of which one line is on standard error (``--debug`` adds the traceback).
    """
    options = make_parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", UserWarning)  # ours; not what developers of libraries are told
            options.run(options)
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `tvm-int8 inspect net.so | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if options.debug:
            traceback.print_exc()
        text = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, TvmInt8Error):
            text = f"unexpected {type(error).__name__}: {text[:300]}; run again with --debug and report it"
        print(f"tvm-int8: error: {text}", file=sys.stderr)
        return _USAGE_ERROR
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; each puts a function into ``run``."""
    parser = argparse.ArgumentParser("tvm-int8", description=tvm_int8.__doc__.splitlines()[0])
    parser.add_argument("--version", action="version", version=f"tvm-int8 {tvm_int8.__version__}")
    parser.set_defaults(debug=False)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in (_add_compile, _add_run, _add_inspect, _add_calibrate):
        add(commands)
    add_quantize(commands, _add_model, add_config, _inputs)
    add_allocate(commands, _add_model, add_config, _inputs, _positive)
    add_finetune(commands, _add_model, add_config, _inputs, _positive)
    add_analyze(commands, _add_model, add_config, _inputs, _positive)
    add_tune(commands, _add_model, _inputs, _positive)
    add_logs(commands)
    add_worker(commands)
    for command in commands.choices.values():
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _add_compile(commands: Any) -> None:
    parser = commands.add_parser("compile", help="compile a model to one shared library")
    _add_model(parser)
    parser.add_argument("-o", "--output", required=True, metavar="NET.so", help="the library to write")
    parser.add_argument(
        "--target", default="native", help='"native" (the default), a CPU like znver4, or "llvm -mcpu=cascadelake"'
    )
    parser.add_argument(
        "--calibration", metavar="FILE", help=".npz or .npy with typical inputs, or the table that calibrate wrote"
    )
    add_config(parser)
    parser.add_argument("--bits", metavar="BITS.json", help="what allocate wrote; by default 8 for all")
    parser.add_argument("--float32", action="store_true", help="do not quantise")
    parser.add_argument("--threads", type=_positive, metavar="N", help="threads to run on; by default all cores")
    parser.add_argument(
        "--tuning-log", action="append", metavar="FILE.jsonl", help="what tune wrote, asked before the shipped logs"
    )
    parser.add_argument("--untuned", action="store_true", help="ask no tuning log: knobs from a model of the CPU")
    parser.add_argument(
        "--unpacked", action="store_true", help="weights as kernels read them: TVM's runtime alone can run the library"
    )
    parser.add_argument("--report", action="store_true", help="print a line per layer")
    parser.set_defaults(run=_compile)


def _add_run(commands: Any) -> None:
    parser = commands.add_parser("run", help="run a compiled library")
    parser.add_argument("library", metavar="NET.so")
    parser.add_argument("--input", metavar="FILE", help=".npz with an array per input, or .npy; by default made up")
    parser.add_argument("--output", metavar="OUT.npz", help="write the outputs, an array each")
    parser.add_argument("--threads", type=_positive, metavar="N", help="threads to run on")
    parser.add_argument("--benchmark", action="store_true", help="time whole runs")
    parser.add_argument("--profile", action="store_true", help="time every kernel")
    parser.set_defaults(run=_run)


def _add_inspect(commands: Any) -> None:
    parser = commands.add_parser("inspect", help="show what is in a compiled library, or in an ONNX model")
    parser.add_argument("file", metavar="NET.so|MODEL.onnx")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=_inspect)


def _add_calibrate(commands: Any) -> None:
    parser = commands.add_parser("calibrate", help="observe the ranges of a model's activations")
    _add_model(parser)
    parser.add_argument("data", metavar="DATA.npz", help=".npz with an array of samples per input, or .npy")
    parser.add_argument("-o", "--output", required=True, metavar="TABLE.json", help="the calibration table to write")
    add_config(parser)
    add_runtime(parser, "tvm-int8")
    parser.add_argument("--keep-histograms", action="store_true", help="put the distribution of every tensor into it")
    parser.set_defaults(run=_calibrate)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL.onnx")
    parser.add_argument(
        "--input-shape",
        action="append",
        type=_named_shape,
        default=[],
        metavar="NAME=1,3,224,224",
        help="where the model leaves dimensions open; once per input",
    )
    parser.add_argument("--input-dtype", choices=["uint8"], help="take images of bytes; by default as the model does")
    parser.add_argument(
        "--input-mean", type=_numbers, metavar="123.7,116.3,103.5", help="of bytes, per channel; what is subtracted"
    )
    parser.add_argument(
        "--input-std", type=_numbers, metavar="58.4,57.1,57.4", help="of bytes, per channel; what is divided by"
    )


def _compile(options: argparse.Namespace) -> None:
    bits = {} if options.bits is None else {"bits": tvm_int8.BitAllocation.load(options.bits)}
    config = config_of(options, **bits)
    if options.float32 and (options.calibration or config):
        found = "with --calibration or options of quantisation"
        raise ConfigError("--float32", found, "one or the other", "leave one out")
    if options.untuned and options.tuning_log:
        raise ConfigError("--untuned", "with --tuning-log", "one or the other", "leave one out")
    choices: dict[str, Any] = {"num_threads": options.threads, **_inputs(options)}
    if options.untuned or options.tuning_log:
        choices["tuning_logs"] = options.tuning_log
    if options.float32:
        choices["quantization"] = None
    elif config:
        choices["quantization"] = config
    module = tvm_int8.compile(options.model, target=options.target, calibration=options.calibration, **choices)
    module.export(options.output, pack_weights=not options.unpacked)
    print(module.report if options.report else module.report.summary)
    print(f"wrote {options.output} ({os.path.getsize(options.output) / 2**20:.1f} MiB, for {module.metadata.mcpu})")


def _run(options: argparse.Namespace) -> None:
    from .runtime import load

    module = load(options.library)
    if options.threads:
        module.num_threads = options.threads
    inputs = _read_inputs(options.input, module) if options.input else _made_up(module)
    outputs = module.run(inputs)
    for info in module.outputs:
        print(f"{info}  {_statistics(outputs[info.name])}")
    if options.output:
        _write_outputs(options.output, outputs)
    if options.benchmark:
        print(module.benchmark(inputs))
    if options.profile:
        print(module.profile(inputs))


def _inspect(options: argparse.Namespace) -> None:
    facts = _onnx_facts(options.file) if options.file.endswith(".onnx") else _library_facts(options.file)
    if options.json:
        print(json.dumps(facts["json"], indent=2))
    else:
        print("\n".join(facts["text"]))


def _calibrate(options: argparse.Namespace) -> None:
    choices = {"config": config_of(options, **RUNTIMES[options.runtime]), "keep_histograms": options.keep_histograms}
    given = {name: value for name, value in choices.items() if value}
    table = tvm_int8.calibrate(options.model, options.data, **given, **_inputs(options))
    table.save(options.output)
    print(f"wrote {options.output} ({len(table)} tensors)")


def _library_facts(path: str) -> dict[str, Any]:
    from .report import Report
    from .runtime import read_metadata

    metadata = read_metadata(path)
    report = Report(metadata.layers, metadata.memory)
    macs = sum(row.macs for row in metadata.kernels)
    text = [f"input   {info}" for info in metadata.inputs] + [f"output  {info}" for info in metadata.outputs]
    text += [f"for {metadata.mcpu}: needs {' '.join(metadata.cpu_features)}"]
    text += ["compiled with " + ", ".join(f"{name} {version}" for name, version in metadata.versions.items())]
    text += [f"{len(metadata.kernels)} kernel calls, {macs / 1e9:.3f} GMAC", "", str(report)]
    return {"text": text, "json": {**metadata.to_dict(), **report.to_dict()}}


def _onnx_facts(path: str) -> dict[str, Any]:
    from .frontend.onnx_file import onnx_dtype, opset_versions, read_onnx

    proto, _ = read_onnx(path)
    graph = proto.graph
    weights = {tensor.name for tensor in graph.initializer}

    def tensor(value: Any) -> dict[str, Any]:
        kind = value.type.tensor_type
        shape = [dim.dim_value or dim.dim_param or "?" for dim in kind.shape.dim]
        return {"name": value.name, "shape": shape, "dtype": onnx_dtype(kind.elem_type)}

    facts: dict[str, Any] = {
        "inputs": [tensor(value) for value in graph.input if value.name not in weights],
        "outputs": [tensor(value) for value in graph.output],
        "opset": opset_versions(proto)[""],
        "producer": f"{proto.producer_name} {proto.producer_version}".strip(),
        "nodes": len(graph.node),
        "operators": dict(Counter(node.op_type for node in graph.node).most_common()),
        "weights": sum(int(np.prod(tensor.dims)) for tensor in graph.initializer),
    }
    text = [f"input   {t['name']}: {t['dtype']}[{', '.join(map(str, t['shape']))}]" for t in facts["inputs"]]
    text += [f"output  {t['name']}: {t['dtype']}[{', '.join(map(str, t['shape']))}]" for t in facts["outputs"]]
    text += [f"opset {facts['opset']}, from {facts['producer'] or 'an unnamed exporter'}"]
    text += [f"{facts['nodes']} nodes, {facts['weights'] / 1e6:.2f} million weights"]
    text += [f"{count:6} {op}" for op, count in facts["operators"].items()]
    return {"text": text, "json": facts}


def _read_inputs(path: str, module: Any) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz by name, or the array of an .npy as the only input."""
    names = [info.name for info in module.inputs]
    try:
        content = np.load(path, allow_pickle=False)
        arrays = {name: content[name] for name in content.files} if hasattr(content, "files") else content
    except Exception as error:
        found = f"cannot be read ({getattr(error, 'strerror', None) or error})"
        raise ConfigError(f"--input {path}", found, "an .npy or .npz file", "check the path") from error
    if isinstance(arrays, dict):
        only = len(arrays) == len(names) == 1
        return {names[0]: next(iter(arrays.values()))} if only else arrays
    if len(names) != 1:
        raise ConfigError(f"--input {path}", "one array", f"an .npz with {', '.join(names)}", "save it with np.savez")
    return {names[0]: arrays}


def _made_up(module: Any) -> dict[str, np.ndarray]:
    from .runtime.arguments import random_inputs

    return dict(zip([info.name for info in module.inputs], random_inputs(module.inputs), strict=True))


def _write_outputs(path: str, outputs: dict[str, np.ndarray]) -> None:
    """Write an .npz whose keys are the outputs' own names, whatever they are (`np.savez` wants keyword arguments)."""
    try:
        with zipfile.ZipFile(path, "w") as archive:
            for name, array in outputs.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, array, allow_pickle=False)
    except OSError as error:
        found = f"cannot be written ({error.strerror or error})"
        raise ConfigError(f"--output {path}", found, "a path in a writable directory", "choose another") from error


def _statistics(array: np.ndarray) -> str:
    if not array.size:
        return "empty"
    line = f"min {array.min():.6g}, max {array.max():.6g}, mean {array.mean():.6g}"
    return f"{line}, argmax {array.argmax()}" if array.ndim == 2 and array.shape[0] == 1 else line


def _inputs(options: argparse.Namespace) -> dict[str, Any]:
    choices: dict[str, Any] = {name: getattr(options, name) for name in ("input_dtype", "input_mean", "input_std")}
    choices["input_shapes"] = dict(options.input_shape) if options.input_shape else None
    return {name: value for name, value in choices.items() if value is not None}


def _named_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """``data=1,3,224,224`` -> ("data", (1, 3, 224, 224)); names may contain ``=``."""
    name, _, shape = text.rpartition("=")
    try:
        dims = tuple(int(dim) for dim in shape.split(","))
    except ValueError:
        dims = ()
    if not name or not dims or min(dims) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not like NAME=1,3,224,224")
    return name, dims


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not like 123.7,116.3,103.5") from None


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _show_warning(message: Any, category: type, *_: Any, **__: Any) -> None:
    print(f"tvm-int8: warning: {' '.join(str(message).split())}", file=sys.stderr)
