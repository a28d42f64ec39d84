"""Measure a run while it trains: its time, its speed, its losses, and whether they diverge."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from gptx.errors import CheckpointError
from gptx_models.training.distributed import Processes
from gptx_models.training.recipe import Recipe
from gptx_models.training.run_state import Progress

LOG_EVERY = 10  # steps from one row of metrics.csv to the next


class RunClock:
    """The training time and the speed of a run, across stops and resumes."""

    def __init__(self, progress: Progress, recipe: Recipe, processes: Processes) -> None:
        self.progress, self.recipe, self.processes = progress, recipe, processes
        self._started = time.perf_counter()  # the start of this process
        self._seconds_before, self._tokens_before = progress.seconds, progress.tokens

    @property
    def seconds(self) -> float:
        """Training time so far, in seconds, with the time before the run was resumed."""
        return self._seconds_before + time.perf_counter() - self._started

    def tokens_per_second(self) -> float:
        """Training tokens per second since this process started."""
        tokens = self.progress.tokens - self._tokens_before
        return tokens / (time.perf_counter() - self._started)

    def share_done(self) -> float:
        """How much of the run is over, by steps or by time: 0 to 1."""
        share = self.progress.step / self.recipe.steps
        if not math.isinf(self.recipe.minutes):
            by_time = self.seconds / 60 / self.recipe.minutes
            share = max(share, self.processes.from_main(by_time))
        return min(share, 1.0)


def time_left(done: float, seconds: float) -> str:
    """A text with the time taken and the time left. done: the share of the run that is over."""
    if done >= 1:
        return f"{seconds / 60:.1f} min in all"
    return f"{seconds / 60:.1f} min, {seconds / 60 * (1 - done) / max(done, 1e-9):.1f} left"


class LossMeter:
    """Collects the losses of the steps, in nats per token.

    Reading a value from the GPU waits for the GPU. The losses therefore stay on the device until
    `read` fetches those of several steps at once.
    """

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self._unread: list[Tensor] = []  # this process's parts of the losses
        self._since_eval: list[float] = []  # summed over the processes
        self._divergence = DivergenceCheck()

    def add(self, loss: Tensor) -> None:
        """Add the loss of a step. loss: this process's part of the step's mean loss, ()."""
        self._unread.append(loss)

    def read(self, step: int) -> float:
        """The mean loss of the steps since the last read. Raises CheckpointError if it diverges.

        step: the number of steps so far.
        """
        losses = self.processes.total(torch.stack(self._unread)).tolist()
        self._divergence.check(losses, step)
        self._since_eval += losses
        self._unread.clear()
        return sum(losses) / len(losses)

    def mean_since_eval(self) -> float:
        """The mean loss of the steps since this was last called."""
        mean = sum(self._since_eval) / len(self._since_eval)
        self._since_eval.clear()
        return mean


class DivergenceCheck:
    """Stops a run whose loss is not a number, or far above its lowest mean so far."""

    def __init__(self) -> None:
        self.lowest = math.inf

    def check(self, losses: list[float], step: int) -> None:
        """Raise CheckpointError for bad losses. losses: those of the last steps, before `step`."""
        for at, loss in enumerate(losses, step - len(losses)):
            if not math.isfinite(loss):
                raise CheckpointError(
                    f"the loss is {loss} at step {at}: lower the learning_rate and begin again"
                    " with --force; what was saved before is still good"
                )
        mean = sum(losses) / len(losses)
        if mean > 1.5 * self.lowest + 1.0:
            raise CheckpointError(
                f"the loss diverges: {mean:.2f} at step {step}, and it was {self.lowest:.2f}"
                " before: lower the learning_rate, or raise warmup, and begin again with --force;"
                " what was saved before is still good"
            )
        if len(losses) == LOG_EVERY:  # fewer are too noisy to compare with
            self.lowest = min(self.lowest, mean)
