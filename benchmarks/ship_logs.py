"""Tune the benchmark set for a CPU and write the logs that are shipped for it.

    python -m benchmarks.ship_logs cascadelake --threads 1 2
    python -m benchmarks.ship_logs skylake-avx512 --networks light --minutes 20

Equal workloads of all networks are tuned once. Trials are appended to WORK/<cpu>.jsonl, so a run that was stopped goes
on where it was; the best record of each workload goes to tuning_logs/<cpu>/<threads>_thread(s).jsonl, whose first line
says which CPU measured.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import onnx_graph
from benchmarks.networks import GROUPS, expand, load_network
from tvm_int8 import tune
from tvm_int8.config import QuantizationConfig
from tvm_int8.frontend import load_model
from tvm_int8.host import cpu_model
from tvm_int8.schedules.cpu import Cpu
from tvm_int8.target import parse_target
from tvm_int8.tuning.log_file import read_log, write_log
from tvm_int8.tuning.tasks import workloads_of
from tvm_int8.tuning.workload import Workload

SHIPPED = Path(__file__).resolve().parent.parent / "tuning_logs"
REPEATED = ("resnet101_v1", "resnet152_v1", "vgg16", "squeezenet1_1", "densenet121_v1")
"""Networks of the benchmark set whose workloads are all in others."""


def workloads(names: Sequence[str], cpu: Cpu) -> list[Counter[Workload]]:
    """Return the workloads of networks in INT8, and how many layers have each."""
    found = []
    for name in names:
        model = onnx_graph.logits_model(load_network(name).model)
        found.append(workloads_of(load_model(model), cpu, QuantizationConfig()))
    return found


def shipped_file(mcpu: str, threads: int) -> Path:
    """Return where the records of a CPU and a number of threads are shipped."""
    return SHIPPED / mcpu / f"{threads}_thread{'s' if threads > 1 else ''}.jsonl"


def ship(target: str, threads: int, log: Path, names: Sequence[str]) -> Path:
    """Write the shipped file of a CPU from the log of its trials."""
    mcpu = parse_target(target).mcpu
    records = [
        replace(record, extra={})
        for record in read_log(log).best()
        if record.target == mcpu and record.workload.threads == threads and record.final
    ]
    measured_on = sorted({record.cpu for record in records})
    compiled = "" if target == mcpu else f" Compiled for {target}, which that CPU can run."
    header = (
        f"{mcpu}, {threads} thread(s): convolutions and dense layers in INT8 of {', '.join(names)}. Measured on "
        f"{'; '.join(measured_on)}.{compiled} Every kernel's result was compared with the reference, bit for bit."
    )
    path = shipped_file(mcpu, threads)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_log(path, sorted(records, key=lambda record: str(record.workload)), [header])
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Tune and ship."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ship_logs", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("target", help="as for tvm-int8 tune: a CPU, or llvm -mcpu=... -mattr=...")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--networks", nargs="+", default=["all"], help=f"names, or groups: {', '.join(GROUPS)}")
    parser.add_argument("--minutes", type=float, help="per number of threads")
    parser.add_argument("--trials", type=int, help="per number of threads")
    parser.add_argument("--work", type=Path, default=Path("."), help="where logs of trials are kept")
    arguments = parser.parse_args(argv)
    resolved = parse_target(arguments.target)
    names = [name for name in expand(arguments.networks) if name not in REPEATED]
    networks = workloads(names, replace(resolved.cpu, threads=1))
    log = arguments.work / f"{resolved.mcpu}.jsonl"
    for threads in arguments.threads:
        result = tune(networks, arguments.target, arguments.trials, log, minutes=arguments.minutes, num_threads=threads)
        print(f"{result}\nwrote {ship(arguments.target, threads, log, names)} ({cpu_model()})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
