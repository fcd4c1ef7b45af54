"""The command ``tvm-int8 run``: runs a compiled library, and times it."""

from __future__ import annotations

import argparse
import zipfile
from typing import Any

import numpy as np

from tvm_int8.errors import ConfigError

from .model import positive


def add_run(commands: Any) -> None:
    """Add ``run`` to the commands."""
    parser = commands.add_parser("run", help="run a compiled library")
    parser.add_argument("library", metavar="NET.so")
    parser.add_argument("--input", metavar="FILE", help=".npz with an array per input, or .npy; by default made up")
    parser.add_argument("--output", metavar="OUT.npz", help="write the outputs, an array each")
    parser.add_argument("--threads", type=positive, metavar="N", help="threads to run on")
    parser.add_argument("--benchmark", action="store_true", help="time whole runs")
    parser.add_argument("--profile", action="store_true", help="time every kernel")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from tvm_int8.runtime import load

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
    from tvm_int8.runtime.arguments import random_inputs

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
