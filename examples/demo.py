"""What `make demo` runs: two networks, quantised, compiled and timed on this CPU, in under four minutes.

By hand: `python -m examples.demo`, from the checkout.

1. A ResNet-8 that reads handwritten digits, trained on real scans (`examples/digits`): accuracy before and after
   quantisation, speed, and the exported library loaded back and compared.
2. ResNet-50 at full size with drawn weights: speed, the slowest kernels, and how many layers run in INT8.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import tvm_int8
from benchmarks.images import synthetic_images
from benchmarks.zoo.resnet import resnet
from examples.digits import data as digits
from tvm_int8.quantization.sqnr import sqnr_db

HERE = Path(__file__).resolve().parent

console = Console(highlight=False)
STARTED = time.perf_counter()


def say(what: str) -> None:
    """Print what begins now, after the seconds since the start."""
    console.print(f"[dim]{time.perf_counter() - STARTED:4.0f} s[/]  {what} ...", soft_wrap=True)


def infer_all(module: Any, images: np.ndarray) -> np.ndarray:
    """Logits of all images, one inference each."""
    return np.concatenate([module(images[i : i + 1])[0] for i in range(len(images))])


def export(module: Any, path: Path) -> float:
    """Write the shared library and return its size in megabytes."""
    module.export(path)
    return path.stat().st_size / 1e6


def blocks(images: np.ndarray, rows: int = 6) -> str:
    """Draw images side by side in block characters, each in `rows` lines of twice as many columns."""
    side = 2 * rows
    nearest = ((np.arange(side) + 0.5) * images.shape[-1] / side).astype(int)
    ink = images[:, 0][:, nearest][:, :, nearest] > 0.5
    lines = (ink[:, 0::2] * 2 + ink[:, 1::2]).transpose(1, 0, 2)
    return "\n".join("  ".join("".join(" ▄▀█"[dots] for dots in image) for image in line).rstrip() for line in lines)


def columns(title: str, names: Sequence[str]) -> Table:
    """Make a table with one left-aligned column of labels and right-aligned numbers."""
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for name in names:
        table.add_column(name, justify="left" if name == names[0] else "right")
    return table


def milliseconds(times: Any) -> str:
    """Median, with the 90th percentile behind it."""
    return f"{times.median_ms:.3f} (p90 {times.p90_ms:.3f})"


def demo_digits(directory: Path) -> None:
    """Quantise the digits network, and show that it still reads digits."""
    model = HERE / "digits" / "resnet8_digits.onnx"
    say("calibrating ResNet-8 on 200 images of digits")
    table = tvm_int8.calibrate(model, digits.calibration_inputs())
    say("compiling it in FP32")
    fp32 = tvm_int8.compile(model, quantization=None, num_threads=1)
    say("compiling it in INT8")
    int8 = tvm_int8.compile(model, calibration=table, num_threads=1)
    say("running both on 400 held-out images, exporting, timing")
    x, y = digits.held_out()
    logits = {"FP32": infer_all(fp32, x), "INT8": infer_all(int8, x)}
    sizes = {"FP32": export(fp32, directory / "digits_fp32.so"), "INT8": export(int8, directory / "digits_int8.so")}
    times = {"FP32": fp32.benchmark(), "INT8": int8.benchmark()}
    say("loading the exported INT8 library and running it on the same images")
    reloaded = infer_all(tvm_int8.load(directory / "digits_int8.so"), x)
    if not np.array_equal(reloaded, logits["INT8"]):
        raise SystemExit("the exported library does not compute what the compiled module computed")

    console.print(f"\n[bold]Six of the held-out digits, and what INT8 reads:[/]\n{blocks(x[:6])}")
    console.print("".join(f"{digit:^14}" for digit in logits["INT8"][:6].argmax(1)).rstrip() + "\n")
    result = columns("ResNet-8 on handwritten digits, batch 1, 1 thread", ["", "FP32", "INT8"])
    result.add_row("accuracy on 400 held-out images", *(f"{(v.argmax(1) == y).mean():.2%}" for v in logits.values()))
    result.add_row("library, MB", *(f"{size:.2f}" for size in sizes.values()))
    result.add_row("latency, ms", *(milliseconds(t) for t in times.values()))
    console.print(result)
    agreement = (logits["FP32"].argmax(1) == logits["INT8"].argmax(1)).mean()
    speed_up = times["FP32"].median_ms / times["INT8"].median_ms
    console.print(
        f"INT8 is [bold]{speed_up:.2f}x[/] as fast and decides like FP32 on {agreement:.2%} of the images "
        f"(logits at {sqnr_db(*logits.values()):.1f} dB SQNR).\nThe exported library computes the same bits.\n",
        soft_wrap=True,
    )


def slowest(profile: Any, count: int = 5) -> Table:
    """The kernel calls that took longest."""
    table = columns(
        f"The {count} slowest of its {len(profile.rows)} INT8 kernel calls", ["layer", "us", "GMAC/s", "share"]
    )
    for row in sorted(profile.rows, key=lambda row: -row.us)[:count]:
        table.add_row(row.layer, f"{row.us:.0f}", f"{row.gmacs_per_s:.0f}", f"{row.share:.1%}")
    return table


def demo_resnet50() -> None:
    """Time ResNet-50 in FP32 and INT8, on one thread and on all."""
    say("drawing the weights of a ResNet-50")
    model = resnet(50)
    info = model.graph.input[0]
    channels, height, width = (dim.dim_value for dim in info.type.tensor_type.shape.dim[1:])
    say("calibrating it on 4 synthetic images")
    inputs = [{info.name: image} for image in synthetic_images(4, (channels, height, width))]
    table = tvm_int8.calibrate(model, inputs, method="minmax")

    say("compiling it in FP32")
    fp32 = tvm_int8.compile(model, quantization=None)
    say("compiling it in INT8")
    int8 = tvm_int8.compile(model, calibration=table)

    result = columns("ResNet-50, 224x224, batch 1: latency in ms", ["threads", "FP32", "INT8", "speed-up"])
    for threads in sorted({1, len(os.sched_getaffinity(0))}):
        say(f"timing both on {threads} thread{'s' * (threads > 1)}")
        times = [module.benchmark(num_threads=threads) for module in (fp32, int8)]
        speed_up = times[0].median_ms / times[1].median_ms
        result.add_row(str(threads), *(milliseconds(t) for t in times), f"{speed_up:.2f}x")
    say("timing every INT8 kernel on 1 thread")
    profile = int8.profile(num_threads=1)
    console.print()
    console.print(result)
    console.print(slowest(profile))
    console.print(f"{int8.report.summary}; compiled for {int8.metadata.mcpu}\n", soft_wrap=True)


def main() -> None:
    """Run both parts and print how long they took."""
    with tempfile.TemporaryDirectory() as directory:
        demo_digits(Path(directory))
    demo_resnet50()
    console.print(f"[dim]{time.perf_counter() - STARTED:.0f} s in total[/]")


if __name__ == "__main__":
    main()
