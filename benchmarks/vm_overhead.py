"""What a run costs beside its kernels: the virtual machine, tensor objects, and the call from Python.

    python -m benchmarks.vm_overhead squeezenet densenet121

Every network is compiled a second time with kernels that return at once. What that variant takes is the overhead: calls
of functions with the same arguments, in the same memory. A row has the medians, in us, of interleaved runs on one
thread:

    run        inputs in place to outputs in place
    overhead   the same without the kernels' work, and its share of a run
    per call   overhead per kernel call
    in, out    what `module(x)` adds: the check and the copy of the inputs, and a copy of the outputs
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tvm
from tvm import relax, tirx

import tvm_int8
from benchmarks.networks import Network, expand, load_network
from benchmarks.timing import interleave
from tvm_int8 import api
from tvm_int8.build import compile_planned
from tvm_int8.report import table
from tvm_int8.runtime.threads import run_on_threads

CALIBRATION = 4  # inputs: ranges do not matter here


def compile_twice(network: Network, target: str):
    """Return (module, the same module with empty kernels)."""
    planned: list[tvm.IRModule] = []
    original = api.lower_and_build

    def keeping(mod, *arguments):
        executable, rows, lowered = original(mod, *arguments)
        planned.append(lowered)
        return executable, rows, lowered

    api.lower_and_build = keeping
    try:
        inputs = network.inputs(CALIBRATION, 0)
        module = tvm_int8.compile(network.model, target, inputs, num_threads=1, progress=False)
    finally:
        api.lower_and_build = original
    return module, compile_planned(without_work(planned[-1]), tvm.target.Target(module.metadata.target))


def without_work(planned: tvm.IRModule) -> tvm.IRModule:
    """Every TensorIR function with an empty body."""
    functions = {
        variable: func.with_body(tirx.Evaluate(0)) if isinstance(func, tirx.PrimFunc) else func
        for variable, func in planned.functions_items()
    }
    return tvm.IRModule(functions, attrs=planned.attrs, global_infos=planned.global_infos)


def measure(network: Network, target: str, rounds: int) -> list[str]:
    """Return a row of the table."""
    module, empty = compile_twice(network, target)
    machine = relax.VirtualMachine(empty, tvm.cpu())["main"]
    x = network.inputs(1, 1)
    module(*x)  # loads the code, fills the buffers
    run = module._main
    tensors = module._buffers.tensors

    calls: dict[str, Callable[[], object]] = {
        "run": lambda: run(*tensors),
        "empty": lambda: machine(*tensors),
        "call": lambda: module(*x),
    }
    times = run_on_threads(lambda: interleave(calls, rounds, runs_per_turn=10), 1)
    whole, overhead, call = (times[name].median_ms * 1e3 for name in calls)
    kernels = len(module.metadata.kernels)
    numbers = [f"{whole:.0f}", f"{overhead:.1f}", f"{overhead / whole:.2%}", f"{overhead / kernels:.2f}"]
    return [network.name, str(kernels), *numbers, f"{call - whole:.0f}"]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=["squeezenet"], help="as for benchmarks.compare")
    parser.add_argument("--target", default="native")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--cache", type=Path, help="where the networks are kept for the next time")
    options = parser.parse_args()
    header = ("network", "kernels", "run us", "overhead us", "share", "per call us", "in, out us")
    rows = [
        measure(load_network(name, options.cache), options.target, options.rounds) for name in expand(options.networks)
    ]
    print(table(header, rows, right_aligned=range(1, len(header))))
    print(f"numpy {np.__version__}, tvm {tvm.__version__}")


if __name__ == "__main__":
    main()
