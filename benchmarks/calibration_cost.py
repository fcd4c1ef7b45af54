"""What calibrating a network takes: seconds, of the processor too, and the process's peak memory before and after.

    python -m benchmarks.calibration_cost resnet50_v1 --count 100

Names are those of `benchmarks.compare`, or an .onnx file. Images are made beforehand and are part of the memory before.
Peak memory is that of the whole process, so calibrate one network at a time.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Sequence

import tvm_int8
from benchmarks.networks import load_network


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts kilobytes


def main(argv: Sequence[str] | None = None) -> int:
    """Calibrate one network and print a line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.calibration_cost", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("network")
    parser.add_argument("--count", type=int, default=100, help="images (default 100)")
    parser.add_argument("--method", help="of calibration (default: that of QuantizationConfig)")
    arguments = parser.parse_args(argv)
    network = load_network(arguments.network)
    images = network.inputs(arguments.count, 0)
    before, start, start_cpu = _peak_mb(), time.perf_counter(), time.process_time()
    table = tvm_int8.calibrate(network.model, images, arguments.method, progress=False)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    times = f"{seconds:.1f} s ({cpu_seconds:.1f} s of processor time)"
    memory = f"peak memory {_peak_mb():.0f} MB, {before:.0f} MB before"
    print(f"{network.name}: {arguments.count} images, {len(table)} tensors: {times}; {memory}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
