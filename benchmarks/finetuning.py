"""What training wins back of the accuracy that few bits cost: FP32, quantised, and fine-tuned, all compiled.

    python -m benchmarks.finetuning net.onnx --calibration c.npy --train x.npy --test t.npy --labels labels.npy
    python -m benchmarks.finetuning net.onnx ... --bits 4 --activation-bits 4 --epochs 7 --learning-rate 2e-3 --flip

Bits are the same for all layers, or, with `--allocate`, allocated so that weights have them on average. Training learns
from the FP32 network, and from `--train-labels`, if there are any; `--labels` are of the test inputs. PyTorch runs on
as many threads as OMP_NUM_THREADS says.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial, reduce
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import tvm_int8
from benchmarks.judge import Batches, Case, Outputs, add_files, judge, load_batches
from tvm_int8.bit_allocation import BitAllocation


def flip(batch: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Mirror every second image."""
    return {name: np.where(rng.random((len(x), 1, 1, 1)) < 0.5, x[..., ::-1], x) for name, x in batch.items()}


def shift(batch: dict[str, np.ndarray], rng: np.random.Generator, most: int) -> dict[str, np.ndarray]:
    """Move every image by up to `most` pixels each way; what comes in is 0."""
    found = {}
    for name, images in batch.items():
        height, width = images.shape[2:]
        padded = np.pad(images, ((0, 0), (0, 0), (most, most), (most, most)))
        places = rng.integers(0, 2 * most + 1, (len(images), 2))
        rows = [image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, places, strict=True)]
        found[name] = np.stack(rows)
    return found


def _augment(arguments: argparse.Namespace) -> Callable | None:
    """What is asked for, one after the other."""
    steps: list[Callable] = [flip] if arguments.flip else []
    if arguments.shift:
        steps.append(partial(shift, most=arguments.shift))
    return None if not steps else lambda batch, rng: reduce(lambda changed, step: step(changed, rng), steps, batch)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.finetuning", description=(__doc__ or "").split("\n")[0])
    add_files(parser)
    parser.add_argument("--train", type=Path, required=True, help=".npz or .npy of inputs to train on")
    parser.add_argument("--train-labels", type=Path, help=".npy with the class of every one of them")
    parser.add_argument("--distillation", type=float, default=0.5, help="its share of the loss beside labels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bits", type=int, default=4, help="of weights (default 4)")
    parser.add_argument("--activation-bits", type=int, default=4, help="of activations (default 4)")
    parser.add_argument("--allocate", action="store_true", help="to layers, on average")
    parser.add_argument("--epochs", type=int, default=7)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--flip", action="store_true", help="mirror images at random")
    parser.add_argument("--shift", type=int, default=0, help="move images at random, pixels at most (default 0)")
    parser.add_argument("--checkpoint", type=Path)
    return parser.parse_args(argv)


def _run(model: Any, batches: Batches, **options: Any) -> Outputs:
    module = tvm_int8.compile(model, **options)
    runs = (module.run(dict(batch)) for batch in batches)
    return [[np.array(found[info.name]) for info in module.outputs] for found in runs]


def _bits(arguments: argparse.Namespace, model: onnx.ModelProto, calibration: Any) -> BitAllocation | dict:
    if not arguments.allocate:
        return {"weights": {"*": arguments.bits}, "activations": {"*": arguments.activation_bits}}
    wanted = {"average_bits": arguments.bits, "activation_bits": arguments.activation_bits}
    return tvm_int8.allocate_bits(model, calibration, **wanted)


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row for each of the three."""
    arguments = _arguments(argv)
    case = Case.read(arguments)
    config = tvm_int8.QuantizationConfig.from_dict({"bits": _bits(arguments, case.model, case.calibration)})
    quantized = tvm_int8.quantize(case.model, case.calibration, config)
    start = time.perf_counter()
    tuned = tvm_int8.finetune(
        quantized,
        load_batches(arguments.train, case.model),
        arguments.train_labels,
        distillation=arguments.distillation,
        seed=arguments.seed,
        epochs=arguments.epochs,
        learning_rate=arguments.learning_rate,
        augment=_augment(arguments),
        checkpoint=arguments.checkpoint,
    )
    seconds = time.perf_counter() - start
    reference = _run(case.model, case.test, quantization=None)
    print("| | SQNR dB | FP32's decisions | accuracy |\n|---|---|---|---|")
    for name, outputs in (
        ("FP32", reference),
        ("quantised", _run(quantized, case.test)),
        ("fine-tuned", _run(tuned.quantized, case.test)),
    ):
        found = judge(reference, outputs, case.labels)
        accuracy = "" if found.accuracy is None else f"{found.accuracy:.1%}"
        print(f"| {name} | {found.sqnr_db:.1f} | {found.equal_decisions:.1%} | {accuracy} |")
    print(f"\n{seconds:.0f} s of training; loss by epoch {' '.join(f'{loss:.3g}' for loss in tuned.losses)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
