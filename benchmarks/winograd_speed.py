"""What computing 3x3 convolutions by tiles gains in time: layers, and whole networks with what they lose.

    python -m benchmarks.winograd_speed layers --target cascadelake --threads 1
    python -m benchmarks.winograd_speed threads --target cascadelake --threads 2
    python -m benchmarks.winograd_speed networks resnet50_v1 vgg19 --target cascadelake --threads 1

Layers are those of stride 1 of ResNet-50 and VGG, untuned; each kernel's result is compared bit for bit with the NumPy
reference before it is timed. Networks are compiled once for every row, with the same calibration; SQNR is that of the
outputs against the network in FP32 (ONNX Runtime's). All times are medians of interleaved runs, as ratios of runs of
the same turn. The INT8 of ONNX Runtime and OpenVINO is beside them; ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI holds the
latter to VNNI on CPUs that have more.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tvm

import tvm_int8
from benchmarks import metrics, onnx_graph, peers
from benchmarks.networks import expand, load_network
from benchmarks.timing import Times, interleave
from tvm_int8.code_generation import TENSOR_IR
from tvm_int8.runtime.threads import run_on_threads
from tvm_int8.schedules.registry import deliver
from tvm_int8.target import ResolvedTarget, parse_target
from tvm_int8.tuning.candidate import Sample, meant_channels
from tvm_int8.tuning.workload import Workload

LAYERS = {
    "ResNet-50": ((64, 64, 56), (128, 128, 28), (256, 256, 14), (512, 512, 7)),
    "VGG": (
        (64, 64, 224), (64, 128, 112), (128, 128, 112), (128, 256, 56), (256, 256, 56), (256, 512, 28),
        (512, 512, 28), (512, 512, 14),
    ),
}  # fmt: skip
"""Input channels, output channels, rows and columns of the map."""
TILES = {"F(2,3)": (2, 2), "F(4x2,3)": (4, 2), "F(4,3)": (4, 4)}
ROWS: dict[str, dict[str, Any]] = {
    "direct": {"winograd": "off"},
    "auto": {},
    "auto, 6 dB": {"winograd_max_loss_db": 6.0},
    "always": {"winograd": "always"},
}
"""Options of quantisation by the name of a row."""


def direct_workload(channels: int, outputs: int, size: int, threads: int) -> Workload:
    """A 3x3 convolution of a square map."""
    return Workload(
        "conv2d",
        (1, channels, size, size),
        (1, outputs, size, size),
        kernel=(3, 3),
        strides=(1, 1),
        padding=(1, 1, 1, 1),
        dilation=(1, 1),
        groups=1,
        block=16,
        dtypes=("uint8", "int8", "uint8"),
        threads=threads,
    )


def tiled_workload(direct: Workload, name: str) -> Workload:
    """The same layer by tiles, by their name."""
    return replace(direct, op="winograd_conv2d", tile=TILES[name])


def layer(channels: int, outputs: int, size: int, resolved: ResolvedTarget) -> dict[str, Times]:
    """Check and time one layer, directly and by tiles."""
    direct = direct_workload(channels, outputs, size, resolved.cpu.threads)
    ways = {name: tiled_workload(direct, name) for name in TILES}
    return interleave({name: kernel(w, resolved) for name, w in {"direct": direct, **ways}.items()}, 9, 10)


def kernel(workload: Workload, resolved: ResolvedTarget) -> Callable[[], object]:
    """Build a workload's kernel untuned, check its result, return what runs it.

    Raises
    ------
    AssertionError
        The result is not the reference's.
    """
    sample = Sample.of(workload)
    made = deliver(sample.spec, sample.constants, resolved.cpu)
    module = tvm.IRModule({"main": made.func.with_attr("global_symbol", "main")})
    run = tvm.compile(module, resolved.tvm_target, tir_pipeline=TENSOR_IR)["main"]
    arrays = [tvm.runtime.tensor(array) for array in (sample.data, *made.constants, np.zeros_like(sample.out))]
    run(*arrays)
    found, expected = (meant_channels(out, workload.out[1]) for out in (arrays[-1].numpy(), sample.out))
    np.testing.assert_array_equal(found, expected)
    return lambda: run(*arrays)


def print_layers(resolved: ResolvedTarget) -> None:
    """Print the table of layers."""
    print("| | layer | direct us | " + " | ".join(TILES) + " |\n|---|---|" + "---:|" * (1 + len(TILES)))
    gains: dict[str, list[float]] = {name: [] for name in TILES}
    for network, layers in LAYERS.items():
        for shape in layers:
            times = layer(*shape, resolved)
            for name in TILES:
                gains[name].append(times["direct"].relative_to(times[name]))
            cells = " | ".join(f"{gains[name][-1]:.2f}x" for name in TILES)
            size = f"{shape[0]} → {shape[1]}, {shape[2]}x{shape[2]}"
            print(f"| {network} | {size} | {times['direct'].median_ms * 1e3:.0f} | {cells} |", flush=True)
    means = " | ".join(f"{np.exp(np.mean(np.log(found))):.2f}x" for found in gains.values())
    print(f"| | geometric mean | | {means} |")


def print_threads(resolved: ResolvedTarget, threads: int) -> None:
    """Print how many times faster layers by tiles are on `threads` than on one; each is run for some milliseconds."""
    print("| | layer | " + " | ".join(TILES) + " |\n|---|---|" + "---:|" * len(TILES))
    gains: list[list[float]] = []
    for network, layers in LAYERS.items():
        for channels, outputs, size in layers:
            repeats = max(1, 10**9 // (channels * outputs * size**2))
            gains.append([])
            for name in TILES:
                calls = {
                    str(count): _on_threads(name, (channels, outputs, size), resolved, count, repeats)
                    for count in (1, threads)
                }
                times = interleave(calls, 15)
                gains[-1].append(times["1"].relative_to(times[str(threads)]))
            cells = " | ".join(f"{gain:.2f}x" for gain in gains[-1])
            print(f"| {network} | {channels} → {outputs}, {size}x{size} | {cells} |", flush=True)
    means = " | ".join(f"{mean:.2f}x" for mean in np.exp(np.log(gains).mean(0)))
    print(f"| | geometric mean | {means} |")


def _on_threads(
    name: str, shape: tuple[int, int, int], resolved: ResolvedTarget, threads: int, repeats: int
) -> Callable[[], object]:
    here = replace(resolved, cpu=replace(resolved.cpu, threads=threads))
    workload = tiled_workload(direct_workload(*shape, threads), name)
    run = run_on_threads(lambda: kernel(workload, here), threads)

    def repeated() -> None:
        for _ in range(repeats):
            run()

    return lambda: run_on_threads(repeated, threads)


def print_network(name: str, target: str, threads: int, rounds: int) -> None:
    """Print a network's rows, and those of the runtimes that are installed."""
    network = load_network(name)
    model, calibration = onnx_graph.logits_model(network.model), network.inputs(8, 0)
    inputs = network.inputs(4, 1)
    exact = peers.ort_fp32(model, calibration, threads)
    assert isinstance(exact, peers.Runner), exact
    table = tvm_int8.calibrate(model, calibration, progress=False)
    options: dict[str, Any] = {"calibration": table, "num_threads": threads, "progress": False}
    runs: dict[str, peers.Infer] = {}
    tiles: dict[str, str] = {}
    for row, quantization in ROWS.items():
        runs[row] = module = tvm_int8.compile(model, target, quantization=quantization, **options)
        tiles[row] = _tiles(module.report)
    for make in (peers.ort_int8, peers.nncf_int8):
        peer = make(model, calibration, threads)
        if isinstance(peer, peers.Runner):
            runs[peer.name] = peer.infer
        else:
            print(f"{peer.name} is not in the table: {peer.reason}", file=sys.stderr)
    times = interleave({row: functools.partial(run, inputs[0]) for row, run in runs.items()}, rounds)
    for row, run in runs.items():
        found = [[value for x in inputs for value in infer(x)] for infer in (exact.infer, run)]
        gain = times["direct"].relative_to(times[row])
        median, sqnr = times[row].median_ms, metrics.sqnr_db(*found)
        print(f"| {name} | {row} | {tiles.get(row, '')} | {median:.2f} | {gain:.2f}x | {sqnr:.1f} |", flush=True)


def _tiles(report) -> str:
    """How many layers are computed by tiles, of which shapes."""
    kernels = [row.kernel.split("_") for row in report if row.kernel.startswith("winograd")]
    counts = Counter(kernel[1] for kernel in kernels)
    return ", ".join(f"{count} {tile}" for tile, count in sorted(counts.items())) or "none"


def main(argv: Sequence[str] | None = None) -> int:
    """Print one of the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.winograd_speed", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("what", choices=("layers", "threads", "networks"))
    parser.add_argument("names", nargs="*", help="networks, as for benchmarks.compare")
    parser.add_argument("--target", default="native")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args(argv)
    resolved = parse_target(arguments.target)
    if arguments.what == "threads":
        print_threads(resolved, max(2, arguments.threads))
        return 0
    resolved = replace(resolved, cpu=replace(resolved.cpu, threads=arguments.threads))
    if arguments.what == "layers":
        run_on_threads(lambda: print_layers(resolved), arguments.threads)
        return 0
    print("| network | | by tiles | ms | speed-up | SQNR dB |\n|---|---|---|---:|---:|---:|")
    for name in expand(arguments.names):
        print_network(name, arguments.target, arguments.threads, arguments.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
