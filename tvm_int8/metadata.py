"""What a compiled module knows of itself: its interface, where it runs, and which kernel does which layer.

`pipeline` fills it in, an exported library carries it as JSON behind the code, and everything the runtime checks or
reports comes from here.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import tvm
import tvm_ffi

from ._version import __version__


@dataclass(frozen=True)
class TensorInfo:
    """An input or output: the model's own name, static shape, dtype as in NumPy."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}{list(self.shape)}"


@dataclass(frozen=True)
class LayerRow:
    """What became of one layer of the model.

    Parameters
    ----------
    layer : str
        Its name in the model.
    op : str
        Its operator: ``"nn.conv2d"``, ``"matmul"``, ...
    precision : str
        ``"int8"`` or ``"float32"``.
    kernel : str
        The kernel that computes it.
    origin : str
        Where the kernel's knobs come from: ``"heuristic"``, or ``"tuned: cascadelake"``, with the name of a log.
    sqnr_db : float, optional
        Signal to quantisation noise ratio at the layer's output, where it was measured.
    reason : str
        Why the layer is not in INT8, or anything else worth knowing.
    weight_bits : float, optional
        Of its packed weights in an exported library, on average over channels; None where they lie there as the kernel
        reads them.
    """

    layer: str
    op: str
    precision: str
    kernel: str = ""
    origin: str = "heuristic"
    sqnr_db: float | None = None
    reason: str = ""
    weight_bits: float | None = None


@dataclass(frozen=True)
class KernelRow:
    """One call of a compiled function, in the order in which they are called.

    Parameters
    ----------
    function : str
        The function's name in the library.
    layer : str
        The layer (or layers) it computes.
    kernel : str
        The kind of kernel.
    macs : int
        Multiply-accumulates of one call.
    bytes : int
        Bytes read and written by one call.
    """

    function: str
    layer: str
    kernel: str
    macs: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Memory:
    """Bytes of memory that a compiled module needs beside its code.

    Parameters
    ----------
    activations : int
        All tensors of one run, planned when compiling: the most that live at the same time, and the outputs.
    scratch : int
        What the kernel with the largest buffers of its own takes from the runtime's pool.
    constants : int
        Weights, biases and scales as kernels read them.
    stored : int, optional
        The same in an exported library, weights packed at the width they need; None where none are.
    """

    activations: int
    scratch: int
    constants: int
    stored: int | None = None

    def __str__(self) -> str:
        parts = {"activations": self.activations, "scratch": self.scratch, "constants": self.constants}
        if self.stored is not None:
            parts["packed in a file"] = self.stored
        return ", ".join(f"{name} {size / 2**20:.2f} MiB" for name, size in parts.items())


def installed_versions() -> dict[str, str]:
    """Return the versions of what a compiled module depends on."""
    return {"tvm": tvm.__version__, "tvm_ffi": tvm_ffi.__version__, "tvm_int8": __version__}


@dataclass(frozen=True)
class Metadata:
    """Everything about a compiled module that is not code.

    Parameters
    ----------
    inputs, outputs : tuple of TensorInfo
        In the order of ``main``'s parameters and results.
    target : str
        TVM's JSON form of the target.
    mcpu : str
        LLVM's name of the CPU.
    cpu_features : tuple of str
        What a machine must have, under the names of /proc/cpuinfo.
    versions : dict
        ``tvm``, ``tvm_ffi`` and ``tvm_int8`` that compiled it.
    num_threads : int, optional
        Threads to run on; None is the machine's default.
    layers : tuple of LayerRow
        For the report.
    kernels : tuple of KernelRow
        One per call of a function that is not a builtin of the VM, in order.
    quantization : dict
        JSON types, free form.
    memory : Memory, optional
        How much the module needs.
    input_alignment : int
        Bytes at a multiple of which kernels expect inputs to begin; others are copied.
    """

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    target: str
    mcpu: str
    cpu_features: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=installed_versions)
    num_threads: int | None = None
    layers: tuple[LayerRow, ...] = ()
    kernels: tuple[KernelRow, ...] = ()
    quantization: Mapping[str, Any] = field(default_factory=dict)
    memory: Memory | None = None
    input_alignment: int = 64

    def __post_init__(self) -> None:
        """Turn lists into tuples, so that equal metadata compare equal."""
        for name in ("inputs", "outputs", "cpu_features", "layers", "kernels"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def to_dict(self) -> dict[str, Any]:
        """Return the metadata as JSON types."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """Return the metadata as one line of JSON."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str | bytes) -> Metadata:
        """Read what `to_json` wrote.

        Raises
        ------
        ValueError, TypeError, KeyError
            The text is something else.
        """
        fields = json.loads(text)
        for name in ("inputs", "outputs"):
            fields[name] = [TensorInfo(**{**info, "shape": tuple(info["shape"])}) for info in fields[name]]
        fields["layers"] = [LayerRow(**row) for row in fields["layers"]]
        fields["kernels"] = [KernelRow(**row) for row in fields["kernels"]]
        if fields.get("memory"):
            fields["memory"] = Memory(**fields["memory"])
        return cls(**fields)
