"""A request: work for one row of the engine, and how far it is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from gptx.generation.row_plan import FinishReason


class Work(Protocol):
    """What a request wants from the model: tokens to read, and what their logits become.

    tokens: the token ids to read. `take` may append to them, or replace them.
    wanted_from: logits are wanted after this token of `tokens`, counted from 0, and all behind it.
    longest: the most tokens that the row will hold.
    generated: the number of tokens that `take` has added.
    finish: why the work has ended; None: it goes on.
    """

    tokens: list[int]
    generated: int
    wanted_from: int
    longest: int
    finish: FinishReason | None

    def take(self, logits: np.ndarray, *, now: float, seconds: float) -> int:
        """Use the logits (n, V) that were wanted of one step. The array may be overwritten.

        now: time.perf_counter() after the step. seconds: how long the step took.

        Returns how many of the tokens that the row holds now are to be kept.
        """
        ...


@dataclass(eq=False)
class Request:
    """Work that the engine does for one caller.

    deadline: a time of time.perf_counter() at which the work ends; None: never.
    cancelled: asked before each step; True ends the work.
    on_step: called behind each step, and at the end, in the thread that runs the step.
    unattended: no thread waits for this request, so the engine's own thread drives its steps.
    """

    work: Work
    changed: threading.Condition
    deadline: float | None = None
    cancelled: Callable[[], bool] | None = None
    on_step: Callable[[], object] | None = None
    unattended: bool = False
    row: int | None = None  # None: it waits in the queue, or has ended
    read: int = 0  # tokens of `work` that the row holds
    ended: bool = False
    error: BaseException | None = None
    waiting: int = 0  # threads that wait for it
    asked_to_end: FinishReason | None = None
    taking: bool = field(default=False)  # True while `take` runs, and for good if that was stopped

    @property
    def decoding(self) -> bool:
        """Whether only its last token is left to read."""
        return self.read == len(self.work.tokens) - 1
