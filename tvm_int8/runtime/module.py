"""A compiled network: call it, time it, ask what became of each layer, export it."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import relax

from ..errors import ArtifactError, ConfigError
from ..metadata import Metadata
from ..packed_weights import PackedWeight
from ..report import Report
from ..target import check_host
from . import arguments, artifact
from .measure import (
    BenchmarkResult,
    KernelClock,
    OutputRecorder,
    Profile,
    check_kernels,
    make_profile,
    time_runs,
)
from .threads import check_num_threads, effective_num_threads, run_on_threads


class CompiledModule:
    """A network compiled for one CPU; made by `tvm_int8.compile` and `tvm_int8.load`.

    Calls from several threads take turns. Nothing is loaded or checked against this machine's CPU before the first run,
    so a module for another CPU can be exported.

    Parameters
    ----------
    executable : tvm.relax.VMExecutable or tvm.runtime.Module
        What `relax.build` returns, or a loaded library.
    metadata : Metadata
        Its description.
    packed : sequence of PackedWeight
        Weights that `export` stores at the width they need.

    Attributes
    ----------
    metadata : Metadata
        What the module knows of itself.
    report : Report
        A row per layer: precision, kernel, tuned or heuristic, SQNR, why.

    Examples
    --------
    >>> outputs = module(x)                                             # doctest: +SKIP
    >>> outputs = module.run({"input": x})["output"]                    # doctest: +SKIP
    >>> print(module.profile(x))                                        # doctest: +SKIP
    """

    def __init__(self, executable: Any, metadata: Metadata, packed: Sequence[PackedWeight] = ()):
        self.metadata = metadata
        self.report = Report(metadata.layers, metadata.memory)
        self._executable, self._packed = executable, tuple(packed)
        self._source: tuple[Path, artifact.Trailer] | None = None
        self._num_threads = check_num_threads(metadata.num_threads)
        self._lock = threading.Lock()
        self._vm: Any = None
        self._main: Any = None
        self._buffers: arguments.InputBuffers | None = None

    @property
    def inputs(self) -> tuple:
        """The inputs in order, each with name, shape and dtype."""
        return self.metadata.inputs

    @property
    def outputs(self) -> tuple:
        """The outputs in order, each with name, shape and dtype."""
        return self.metadata.outputs

    @property
    def num_threads(self) -> int | None:
        """Threads to run on; None is this machine's default. Can be assigned."""
        return self._num_threads

    @num_threads.setter
    def num_threads(self, count: int | None) -> None:
        self._num_threads = check_num_threads(count)

    def __repr__(self) -> str:
        parts = [", ".join(map(str, infos)) for infos in (self.inputs, self.outputs)]
        return f"<CompiledModule for {self.metadata.mcpu}: {' -> '.join(parts)}; {self.report.summary}>"

    def __call__(self, *arrays: Any) -> list[np.ndarray]:
        """Run the network.

        Parameters
        ----------
        *arrays : ndarray or tensor
            One per input, in order, of exactly its shape. A float input takes any float or integer dtype.

        Returns
        -------
        list of ndarray
            One fresh array per output, in order.

        Raises
        ------
        InputError
            Number, type, shape or dtype do not fit.
        TargetError
            This machine's CPU cannot run the module.
        """
        return self._run(arguments.by_position(arrays, self.inputs))

    def run(self, named_inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Run the network on a dict from input name to array; returns one from output name to array.

        Raises
        ------
        InputError, TargetError
            As for a call.
        """
        names = [info.name for info in self.outputs]
        return dict(zip(names, self._run(arguments.by_name(named_inputs, self.inputs)), strict=True))

    def benchmark(
        self, inputs: Any = None, repeat: int = 50, warmup: int = 5, num_threads: int | None = None
    ) -> BenchmarkResult:
        """Time whole runs, from inputs in place to outputs in place.

        Parameters
        ----------
        inputs : optional
            An array, a list of arrays, or a dict by name; by default made-up numbers.
        repeat, warmup : int
            Timed runs, and runs before them.
        num_threads : int, optional
            By default the module's own.

        Raises
        ------
        InputError, TargetError
            As for a call.
        ConfigError
            `repeat`, `warmup` or `num_threads` is not valid.
        """
        _check_count("repeat", repeat, 1)
        _check_count("warmup", warmup, 0)
        threads = self._threads(num_threads)
        with self._lock:
            self._prepare(inputs)
            times = run_on_threads(lambda: time_runs(self._invoke, repeat, warmup), threads)
        return BenchmarkResult.from_times(times, threads)

    def profile(self, inputs: Any = None, repeat: int = 10, num_threads: int | None = None) -> Profile:
        """Time every kernel call.

        Parameters
        ----------
        inputs, num_threads : optional
            As for `benchmark`.
        repeat : int
            Runs of which each kernel's median is taken.

        Returns
        -------
        Profile
            Prints as a table; see its `rows`.
        """
        _check_count("repeat", repeat, 1)
        threads = self._threads(num_threads)
        with self._lock:
            self._prepare(inputs)

            def measure() -> tuple[list[int], list[KernelClock]]:
                end_to_end = time_runs(self._invoke, repeat, warmup=3)
                self._invoke_instrumented(KernelClock())
                return end_to_end, [self._invoke_instrumented(KernelClock()) for _ in range(repeat)]

            end_to_end, clocks = run_on_threads(measure, threads)
        return make_profile(clocks, self.metadata.kernels, end_to_end, threads)

    def capture(self, inputs: Any = None) -> list[np.ndarray]:
        """Return a copy of what every kernel call writes, in the order of ``metadata.kernels``.

        Physical layouts, padding lanes included. `inputs` as for `benchmark`.
        """
        threads = self._threads(None)
        with self._lock:
            self._prepare(inputs)
            recorder = run_on_threads(lambda: self._invoke_instrumented(OutputRecorder()), threads)
        check_kernels(recorder.functions, self.metadata.kernels)
        return recorder.outputs

    def export(self, path: str | os.PathLike[str], pack_weights: bool = True) -> None:
        """Write the module to one file, a shared library that `tvm_int8.load` reads.

        An existing file is replaced at once, so a process that has it loaded is not disturbed.

        Parameters
        ----------
        path : path
        pack_weights : bool
            Store integer weights at the width they need, and once each, where that is smaller; `load` unpacks them.
            False: as kernels read them, so that any program that hosts TVM's runtime can run the library, too. What was
            loaded is written as it was.

        Raises
        ------
        ArtifactError
            It cannot be written, or there is no C compiler to link it.
        """
        metadata = dataclasses.replace(self.metadata, num_threads=self.num_threads)
        packed = self._packed if pack_weights else ()

        def write_library(path: str) -> None:
            if self._source:
                artifact.copy_library(*self._source, path)
            else:
                artifact.link(self._executable, path, packed)

        if metadata.memory is not None and not self._source and not packed:
            layers = [dataclasses.replace(row, weight_bits=None) for row in metadata.layers]
            memory = dataclasses.replace(metadata.memory, stored=None)
            metadata = dataclasses.replace(metadata, layers=tuple(layers), memory=memory)
        artifact.write(path, write_library, metadata)

    def _threads(self, count: int | None) -> int:
        return effective_num_threads(self._num_threads if count is None else check_num_threads(count))

    def _run(self, values: list[Any]) -> list[np.ndarray]:
        arrays = [arguments.check(value, info) for value, info in zip(values, self.inputs, strict=True)]
        with self._lock:
            self._start()
            tensors = self._buffers.place(arrays)  # type: ignore[union-attr]
            return run_on_threads(lambda: self._invoke_and_copy(tensors), self._threads(None))

    def _prepare(self, values: Any) -> None:
        """Check and place the inputs of a measurement, in any of their forms."""
        ordered = arguments.any_form(values, self.inputs)
        self._fill([arguments.check(value, info) for value, info in zip(ordered, self.inputs, strict=True)])

    def _fill(self, arrays: list[np.ndarray]) -> None:
        self._start()
        self._buffers.fill(arrays)  # type: ignore[union-attr]

    def _start(self) -> None:
        """Load the code into a virtual machine, once."""
        if self._vm is None:
            check_host(self.metadata.cpu_features, f"module compiled for {self.metadata.mcpu}")
            self._buffers = arguments.InputBuffers(self.inputs, self.metadata.input_alignment)
            self._vm = relax.VirtualMachine(self._executable, tvm.cpu())
            self._main = self._vm["main"]

    def _invoke(self) -> Any:
        return self._main(*self._buffers.tensors)  # type: ignore[union-attr]

    def _invoke_and_copy(self, inputs: list[Any]) -> list[np.ndarray]:
        result = self._main(*inputs)
        tensors = [result] if isinstance(result, tvm.runtime.Tensor) else result
        return [np.from_dlpack(tensor).copy() for tensor in tensors]

    def _invoke_instrumented(self, instrument: Callable) -> Any:
        self._vm.set_instrument(instrument)
        try:
            self._invoke()
        finally:
            self._vm.set_instrument(None)
        return instrument


def load(path: str | os.PathLike[str]) -> CompiledModule:
    """Load a module that `CompiledModule.export` wrote.

    Everything is checked before any of its code is mapped into the process.

    Raises
    ------
    ArtifactError
        The file is missing, not one of ours, truncated, corrupted, compiled for a CPU with features this one lacks, or
        with another TVM.
    """
    trailer = artifact.read_trailer(path)
    where = os.fspath(path)
    artifact.check_versions(trailer.metadata, where)
    check_host(trailer.metadata.cpu_features, where, ArtifactError)
    module = CompiledModule(artifact.open_executable(path, trailer.library_bytes), trailer.metadata)
    module._source = (Path(path).resolve(), trailer)
    module._start()
    return module


def _check_count(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(name, repr(value), f"a whole number from {least}", "correct it")
