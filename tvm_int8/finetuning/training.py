"""The loop: batches in a seeded order, Adam with a rate that rises, then falls, checkpoints between steps."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm import tqdm

from tvm_int8.errors import CalibrationError

from .checkpoint import Checkpoint
from .losses import Loss
from .options import Options
from .torch_network import TorchNetwork
from .training_data import TrainingData

SAVE_EVERY_S = 30.0
WARM_UP = 0.1
"""Share of all steps in which the learning rate rises."""
REMEMBERED_BYTES = 1 << 30
"""Outputs of the FP32 network are computed once up to this size, where inputs stay the same."""


def rate(step: int, total: int) -> float:
    """Of the learning rate: it rises in the first steps, while Adam averages few gradients, then falls to 0."""
    return min((step + 1) / (WARM_UP * total + 1), 1.0) * (1 + math.cos(math.pi * step / total)) / 2


@dataclass
class Training:
    """Trains the weights and biases of `network`.

    Parameters
    ----------
    network : TorchNetwork
        With quantisers.
    teacher : TorchNetwork
        FP32, of the same module.
    data : TrainingData
    options : Options
    checkpoint : Checkpoint, optional
    progress : bool
    """

    network: TorchNetwork
    teacher: TorchNetwork
    data: TrainingData
    options: Options
    checkpoint: Checkpoint | None = None
    progress: bool = True
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.loss = Loss(self.network.flow, self.options.distillation)
        self._needs_teacher = self.data.labels is None or self.options.distillation > 0
        self._optimizer = torch.optim.Adam(self.network.parameters(), lr=self.options.learning_rate)
        self._step, self._sum = 0, 0.0
        self._steps_each = -(-len(self.data) // self.options.batch_size)
        self._remembered: list[torch.Tensor] | None = None

    def run(self, resume: bool) -> list[float]:
        """Train to the end, from the checkpoint's step on if there is one; return the mean loss of each epoch.

        Raises
        ------
        ArtifactError
            The checkpoint is of another training, or cannot be read or written.
        CalibrationError
            The loss is not finite.
        """
        state = self.checkpoint.load() if self.checkpoint is not None and resume else None
        if state is not None:
            self._restore(state)
        total, saved = self.options.epochs * self._steps_each, time.monotonic()
        if self._step < total:
            self._remember()
        bar = tqdm(
            total=total, initial=self._step, desc="fine-tune", unit="step", disable=None if self.progress else True
        )
        with bar:
            while self._step < total:
                self._train_on(self._numbers(), total)
                bar.update()
                bar.set_postfix(loss=f"{self._sum / ((self._step - 1) % self._steps_each + 1):.4g}", refresh=False)
                ends = self._step % self._steps_each == 0
                if ends:
                    self.losses.append(self._sum / self._steps_each)
                    self._sum = 0.0
                if self.checkpoint is not None and (ends or time.monotonic() - saved > SAVE_EVERY_S):
                    self._save()
                    saved = time.monotonic()
        return self.losses

    def _numbers(self) -> np.ndarray:
        """The samples of this step."""
        epoch, place = divmod(self._step, self._steps_each)
        order = np.random.default_rng([self.options.seed, epoch]).permutation(len(self.data))
        return order[place * self.options.batch_size : (place + 1) * self.options.batch_size]

    def _train_on(self, numbers: np.ndarray, total: int) -> None:
        inputs, labels = self.data.batch(numbers.tolist(), [self.options.seed, self._step])
        for group in self._optimizer.param_groups:
            group["lr"] = self.options.learning_rate * rate(self._step, total)
        loss = self.loss(self.network(*inputs), self._wanted(numbers, inputs), labels)
        value = float(loss.detach())
        if not math.isfinite(value):
            found = f"a loss of {value} at step {self._step}"
            raise CalibrationError("fine-tuning", found, "a finite one", "lower the learning rate, or check the data")
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self.network.keep_within_range()
        self._step += 1
        self._sum += value

    @torch.no_grad()
    def _wanted(self, numbers: np.ndarray, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """What the FP32 network says."""
        if not self._needs_teacher:
            return []
        if self._remembered is None:
            return self.teacher(*inputs)
        return [known[torch.from_numpy(numbers)].flatten(0, 1) for known in self._remembered]

    @torch.no_grad()
    def _remember(self) -> None:
        """Outputs [samples, samples each, ...] for all data, if these stay the same and it is worth it."""
        if self.data.augments or not self._needs_teacher:
            return
        first = self.teacher(*self.data.batch([0], [0])[0])
        if len(self.data) * sum(out.nbytes for out in first) > REMEMBERED_BYTES:
            return
        starts, size = range(0, len(self.data), self.options.batch_size), self.options.batch_size
        found: list[list[torch.Tensor]] = [[] for _ in first]
        for start in tqdm(starts, "ask FP32", unit="batch", disable=None if self.progress else True):
            numbers = range(start, min(start + size, len(self.data)))
            for known, out in zip(found, self.teacher(*self.data.batch(numbers, [0])[0]), strict=True):
                known.append(out.unflatten(0, (len(numbers), -1)))
        self._remembered = [torch.cat(known) for known in found]

    def _save(self) -> None:
        assert self.checkpoint is not None
        state = {"network": self.network.state_dict(), "optimizer": self._optimizer.state_dict()}
        self.checkpoint.save({**state, "step": self._step, "sum": self._sum, "losses": self.losses})

    def _restore(self, state: dict) -> None:
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._step, self._sum, self.losses = state["step"], state["sum"], list(state["losses"])
