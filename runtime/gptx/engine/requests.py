"""The requests of an engine, from the queue to a row to their end.

    add -> queue -> admit: a row -> steps (steps.py) -> settle -> end

This file knows no threads and no locks: the engine makes one change of the requests at a time.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable

from gptx.engine.request import Request
from gptx.engine.steps import Going, Steps
from gptx.errors import GptxError, QueueFullError, UsageError
from gptx.generation.row_plan import FinishReason


class Requests:
    """The queue, and the rows, at most `max_rows` of them.

    memory: the most bytes of the rows' KV cache and the prefix cache together; rows come first.
    max_queue: the most requests that wait for a row.

    stepping: True while a step runs: `prepare` sets it, and the engine clears it. Meanwhile
    requests that have rows do not end; that they shall is noted, and heeded behind the step.

    A change that an error, such as Ctrl-C, stops half-way is undone by `give_rows_back`.
    """

    def __init__(self, steps: Steps, *, max_rows: int, memory: int, max_queue: int) -> None:
        self.steps, self.max_rows, self.memory, self.max_queue = steps, max_rows, memory, max_queue
        self.queue: deque[Request] = deque()
        self.stepping = False

    @property
    def all(self) -> list[Request]:
        """Those that have rows, then those that wait for one."""
        return [*self.steps.running, *self.queue]

    @property
    def rows(self) -> int:
        """The rows that are taken."""
        return _rows(self.steps.running)

    @property
    def is_full(self) -> bool:
        """Whether the queue holds no more requests."""
        return len(self.queue) >= self.max_queue

    def check(self, request: Request) -> None:
        """Raise UsageError for more rows, GptxError for more memory than there can be."""
        work = request.work
        if len(work.rows) > self.max_rows:
            raise UsageError(
                f"this call needs {len(work.rows)} rows at the same time, and the model was loaded"
                f" with max_rows={self.max_rows}"
            )
        needed = self.steps.bytes_with(len(work.rows), work.longest)
        if needed > self.memory:
            raise GptxError(
                f"a text of up to {work.longest:,} tokens needs {needed:,} bytes for its KV cache,"
                f" and cache_memory is {self.memory:,}: give a smaller max_new_tokens, or load the"
                " model with more cache_memory"
            )

    def add(self, request: Request) -> None:
        """Put a request into the queue. Raises QueueFullError if that is full."""
        if self.is_full and not request.continues:
            raise QueueFullError(
                f"the queue is full: {len(self.queue):,} requests wait for a row already; try"
                " again later"
            )
        self.queue.append(request)

    def prepare(self, going: list[Going]) -> None:
        """Plan a step: what each row feeds is added to `going`. If that is nothing, none begins."""
        self.settle()
        self._admit()
        going += self.steps.plan()
        self.stepping = bool(going)

    def fail(self, going: list[Going], error: Exception) -> None:
        """End the requests of a step that failed."""
        for one in going:
            self._end(one.request, error=error)

    def _admit(self) -> None:
        """Give rows to requests from the queue, in their order, as far as there is memory."""
        steps = self.steps
        while self.queue:
            request = self.queue[0]
            together = [*steps.running, request]
            rows = _rows(together)
            needed = steps.bytes_with(rows, max(one.work.longest for one in together))
            if steps.running and (rows > self.max_rows or needed > self.memory):
                return
            steps.shrink(self.memory - needed)
            try:
                steps.begin(request)
            except Exception as error:  # too little memory
                self._end(request, error=error)
            else:
                self.queue.popleft()

    def settle(self) -> None:
        """End the requests that are done, failed, are not wanted any more or are out of time.

        Wake those who wait for news of the others.
        """
        now = time.perf_counter()
        for request in self.all:
            if request.taking:  # Ctrl-C stopped it half-way
                self._end(request, error=_interrupted())
            elif request.error is not None or request.work.finish is not None:
                self._end(request, error=request.error)
            elif request.asked_to_end is not None:
                self._end(request, finish=request.asked_to_end)
            elif request.deadline is not None and now >= request.deadline:
                self._end(request, finish="time")
            elif request.running:
                request.tell()

    def end_as_asked(self, request: Request) -> None:
        """End a request whose `asked_to_end` is set."""
        if not (request.running and self.stepping):
            self._end(request, finish=request.asked_to_end)

    def interrupt(self, request: Request) -> None:
        """End a request whose caller was stopped by an error, such as Ctrl-C."""
        if request.running and self.stepping:
            request.error = request.error or _interrupted()
        else:
            self._end(request, error=_interrupted())

    def drop_abandoned(self) -> None:
        """End the requests that nobody can read any more."""
        for request in self.all:
            if request.asked_to_end is not None:
                self.end_as_asked(request)

    def end_all(self) -> None:
        """End all requests, and store no prefixes any more."""
        for request in self.all:
            request.asked_to_end = "closed"
            self.end_as_asked(request)
        for cache in self.steps.prefix_caches:
            cache.budget = 0
        self.steps.clear_prefixes()

    def give_rows_back(self) -> None:
        """Take all rows away, and end the requests that had one, with an error if they go on."""
        self.steps.reset(self.all)
        for request in self.all:
            if request.running or request.ended:
                done = request.work.finish is not None and not request.taking
                self._end(request, error=None if done else _interrupted())

    def _end(
        self,
        request: Request,
        *,
        finish: FinishReason | None = None,
        error: BaseException | None = None,
    ) -> None:
        if request.gone:
            return
        if not request.ended:
            request.error = request.error or error
            request.work.finish = request.work.finish or finish
            self.steps.end(request)
            if request.running:
                self.steps.shrink(self.memory - self.steps.bytes)
            request.ended = True
        request.tell()
        # Last: `give_rows_back` finds the request there if this is stopped half-way.
        if request in self.steps.running:
            self.steps.running.remove(request)
        if request in self.queue:
            self.queue.remove(request)
        request.running, request.gone = False, True


def _rows(requests: Iterable[Request]) -> int:
    return sum(len(request.work.rows) for request in requests)


def _interrupted() -> UsageError:
    return UsageError(
        "this request failed or was interrupted in the middle of a step: generate again"
    )
