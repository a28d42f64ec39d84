"""A request: work for one or more rows of the engine, and how far it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from gptx.engine.bell import Bell
from gptx.generation.row_plan import FinishReason


@dataclass(eq=False)
class Row:
    """One row of a request.

    tokens: the token ids that it holds or is to read. Without tokens it has nothing to do yet.
    wanted_from: logits are wanted after this token of `tokens`, counted from 0, and all behind it.
    read: the first tokens, that the KV cache holds. number: the row of the cache; None: none yet.
    logits: those of the last step, (n, V), until the work takes them; None: there are none.
    """

    tokens: list[int]
    wanted_from: int
    read: int = 0
    number: int | None = None
    logits: np.ndarray | None = None

    @property
    def decoding(self) -> bool:
        """Whether only its last token is left to read."""
        return self.read == len(self.tokens) - 1


class Work(Protocol):
    """What a request wants from the model: tokens to read, and what their logits become.

    rows: what it reads. longest: the most tokens that a row will hold.
    generated: the number of tokens that `take` has added.
    """

    rows: list[Row]
    longest: int
    generated: int

    @property
    def finish(self) -> FinishReason | None:
        """Why the work has ended; None: it goes on. The engine sets it to end the work early."""
        ...

    @finish.setter
    def finish(self, reason: FinishReason | None) -> None: ...

    def take(self, logits: Sequence[np.ndarray], *, now: float, seconds: float) -> None:
        """Use the logits (n, V) that were wanted, of each row that has tokens.

        It is called once all these rows have theirs. The arrays may be overwritten. It changes the
        rows' `tokens`, and lowers `read` where tokens of the cache are to be dropped.

        now: time.perf_counter() after the step. seconds: how long the step took.
        """
        ...


@dataclass(eq=False)
class Request:
    """Work that the engine does for one caller.

    deadline: a time of time.perf_counter() at which the work ends; None: never.
    cancelled: asked before each step; True ends the work.
    on_step: called behind each step, and at the end, in the thread that runs the step.
    unattended: no thread waits for this request, so the engine's own thread drives its steps.
    continues: an earlier request of the same call was submitted, so a full queue takes it, too.
    """

    work: Work
    deadline: float | None = None
    cancelled: Callable[[], bool] | None = None
    on_step: Callable[[], object] | None = None
    unattended: bool = False
    continues: bool = False
    running: bool = False  # it has rows
    ended: bool = False  # nothing more is computed
    gone: bool = False  # the engine does not hold it any more
    error: BaseException | None = None
    bells: list[Bell] = field(default_factory=list)  # of the threads that wait for it
    asked_to_end: FinishReason | None = None
    taking: bool = False  # its logits are being used; for good if Ctrl-C stopped that

    def ring(self) -> None:
        """Wake the threads that wait for it."""
        for bell in self.bells:
            bell.ring()

    def tell(self) -> None:
        """Say that there is news of it."""
        self.ring()
        if self.on_step is not None:
            self.on_step()
