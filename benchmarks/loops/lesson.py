"""Measure one training loop in this process.

In: a lesson as JSON on standard input. Out: figures as JSON on the last line of standard output.
Each *_loop.py calls `main` with a function that trains. All start from the same weights. They
request batches by step number, and the clock starts and stops at these requests.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from gptx_models.data.pretraining import random_windows

TOKENS, WEIGHTS = "tokens.npy", "initial.safetensors"
BETAS, WEIGHT_DECAY, CLIP = (0.9, 0.95), 0.1, 1.0  # as for GPT-3 and in nanoGPT
HELD_OUT = 1 << 40  # a step number that no run reaches, so that its batch is never trained on
LOG_EVERY = 10  # steps between two reads of the loss, as in nanoGPT and gptx

Batch = tuple[Tensor, Tensor]  # inputs and targets, each (batch_size, n_ctx) int64


@dataclass(frozen=True)
class Lesson:
    shape: dict[str, Any]  # GPTConfig's vocab_size, n_ctx, n_layer, n_head and n_embd: a GPT-2
    batch_size: int
    learning_rate: float
    warmup: int  # steps that are not timed
    steps: int  # timed ones
    precision: str  # bf16 (autocast) or fp32
    compile: bool
    device: str
    threads: int
    folder: str  # has TOKENS, and WEIGHTS under transformers' names

    @property
    def all_steps(self) -> int:
        return (
            self.warmup + self.steps + 1
        )  # the clock stops when the step after the last timed one begins

    def weights(self) -> dict[str, Tensor]:
        return load_file(Path(self.folder) / WEIGHTS)

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16")

    def held_out(self) -> list[Batch]:
        batch = _windows(self)
        return [batch(HELD_OUT + i) for i in range(4)]


class Clock:
    """Hands out the batches, and measures from the first timed step to the end of the last one.

    seconds: elapsed. cpu_seconds: CPU time of all threads in this process. memory: the peak so far,
    bytes.
    """

    def __init__(self, lesson: Lesson) -> None:
        self.lesson, self.windows, self.seconds = lesson, _windows(lesson), 0.0
        self.cpu_seconds, self.memory = 0.0, 0

    def __call__(self, step: int) -> Batch:
        if step in (self.lesson.warmup, self.lesson.warmup + self.lesson.steps):
            if self.lesson.device == "cuda":
                torch.cuda.synchronize()
            self.seconds = time.perf_counter() - self.seconds
            self.cpu_seconds = time.process_time() - self.cpu_seconds
            self.memory = _peak_memory(self.lesson.device)
        return self.windows(step)


Train = Callable[
    [Lesson, Callable[[int], Batch]], float
]  # -> loss of what is held out, after all_steps


def main(train: Train) -> None:
    lesson = Lesson(**json.load(sys.stdin))
    torch.set_num_threads(lesson.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = (
        True  # as nanoGPT has it
    )
    clock = Clock(lesson)
    loss = train(lesson, clock)
    gpu = torch.cuda.get_device_name() if lesson.device == "cuda" else None
    times = {"seconds": clock.seconds, "cpu_seconds": clock.cpu_seconds}
    print("\n" + json.dumps({**times, "loss": loss, "memory": clock.memory, "gpu": gpu}))


@torch.no_grad()
def held_out_loss(logits: Callable[[Tensor], Tensor], lesson: Lesson) -> float:
    losses = []
    for inputs, targets in lesson.held_out():
        with lesson.autocast():
            found = logits(inputs.to(lesson.device))
        losses.append(
            F.cross_entropy(found.float().flatten(0, 1), targets.to(lesson.device).flatten()).item()
        )
    return sum(losses) / len(losses)


def _windows(lesson: Lesson) -> Callable[[int], Batch]:
    tokens = np.load(Path(lesson.folder) / TOKENS, mmap_mode="r")
    return random_windows(tokens, batch_size=lesson.batch_size, n_ctx=lesson.shape["n_ctx"], seed=1)


def _peak_memory(device: str) -> int:
    """Peak in bytes: PyTorch's allocations on a GPU, else the process's resident memory."""
    return (
        torch.cuda.max_memory_allocated()
        if device == "cuda"
        else getrusage(RUSAGE_SELF).ru_maxrss * 1024
    )
