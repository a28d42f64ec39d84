"""The engine of a model: requests from any thread share the steps of one KV cache.

    submit -> queue -> a row, and steps (steps.py) -> ended

Whoever waits for a request drives the steps, for all requests, until its own has news; then another
thread that waits takes over. Requests that no thread waits for are driven by a thread of the
engine, which ends when there are none. A lone call needs no other thread.

The lock guards the state of the requests. It is not held while the graph runs or a token is
sampled: only the driver touches the work and the rows meanwhile.
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from gptx.engine.draft_model import DraftModel
from gptx.engine.prefix_cache import PrefixCache
from gptx.engine.prefix_file import load_prefixes, save_prefixes
from gptx.engine.request import Request, Work
from gptx.engine.speculation import Speculation
from gptx.engine.steps import Steps, is_main_thread, raisable
from gptx.errors import GptxError, UsageError
from gptx.generation.row_plan import FinishReason
from gptx.kv_cache.rows import Rows
from gptx.ort.graph import OnnxGraph


@dataclass(frozen=True)
class Stats:
    """What a model is doing, and what it has done since it was loaded.

    Now:

    - rows: texts that grow. queue: texts that wait for a row.
    - cache_bytes: memory of the rows' KV cache, and of the draft model's. prefix_bytes: memory of
      the prefix cache.

    Since it was loaded:

    - steps: runs of the graph.
    - prompt_tokens: tokens of prompts that were read. new_tokens: tokens that were generated.
    - prefix_hits, prefix_tokens: texts that began with a stored prefix, and its tokens, which were
      not read again.
    - drafted, accepted: tokens that speculation guessed, and those that were right.
    - draft_steps: runs of the draft model's graph.
    """

    rows: int
    queue: int
    cache_bytes: int
    prefix_bytes: int
    steps: int
    prompt_tokens: int
    new_tokens: int
    prefix_hits: int
    prefix_tokens: int
    drafted: int
    accepted: int
    draft_steps: int


class Engine:
    """Runs requests on a graph, at most `max_rows` at a time.

    memory: the most bytes of the rows' KV cache and the prefix cache together; rows come first.
    prefix_memory: the most bytes of the prefix cache. max_queue: the most requests that
    wait for a row. speculate: guess tokens where that pays (native operators only). draft: the
    graph of a draft model, which guesses too.
    """

    def __init__(
        self,
        graph: OnnxGraph,
        *,
        max_rows: int,
        memory: int,
        prefix_memory: int,
        max_queue: int,
        speculate: bool,
        draft: OnnxGraph | None = None,
    ) -> None:
        self.max_rows, self.memory, self.max_queue = max_rows, memory, max_queue
        self._graph = graph
        rows = Rows(graph, max_rows)
        guesses = None
        if speculate and rows.packed:
            smaller = None if draft is None else DraftModel(draft, max_rows, prefix_memory)
            guesses = Speculation(smaller)
        self._steps = Steps(rows, PrefixCache(prefix_memory), guesses)
        self._queue: deque[Request] = deque()
        self._lock = threading.RLock()
        self._driver: threading.Thread | None = None
        self._stepping = False  # the driver is in Steps.run
        self._closed = False

    # Requests

    def submit(
        self,
        work: Work,
        *,
        deadline: float | None = None,
        cancelled: Callable[[], bool] | None = None,
        on_step: Callable[[], object] | None = None,
        unattended: bool = False,
    ) -> Request:
        """Put work into the queue; request.py explains the arguments.

        Raises UsageError if the engine is closed or has too few rows, GptxError if the queue is
        full, or the work needs more memory than the budget.
        """
        if len(work.rows) > self.max_rows:
            raise UsageError(
                f"this call needs {len(work.rows)} rows at the same time, and the model was loaded"
                f" with max_rows={self.max_rows}"
            )
        needed = self._steps.bytes_with(len(work.rows), work.longest)
        if needed > self.memory:
            raise GptxError(
                f"a text of up to {work.longest:,} tokens needs {needed / 1e6:,.1f} MB for its KV"
                f" cache, and cache_memory is {self.memory / 1e6:,.1f} MB: give a smaller"
                " max_new_tokens, or load the model with more cache_memory"
            )
        request = Request(
            work, threading.Condition(self._lock), deadline, cancelled, on_step, unattended
        )
        with self._lock:
            if self._closed:
                raise UsageError("this model is closed")
            if len(self._queue) >= self.max_queue:
                self._drop_abandoned()
            if len(self._queue) >= self.max_queue:
                raise GptxError(
                    f"the queue is full: {len(self._queue):,} requests wait for a row already; try"
                    " again later"
                )
            self._queue.append(request)
            if unattended:
                self._find_driver()
        return request

    def wait(
        self, request: Request, ready: Callable[[], bool], timeout: float | None = None
    ) -> bool:
        """Wait until `ready()` is true or the request has ended, and drive the steps meanwhile.

        timeout: seconds. Returns False if they have passed. Raises UsageError if this thread is in
        a step already (in a callback, or a signal handler).
        """
        until = None if timeout is None else time.monotonic() + timeout
        me = threading.current_thread()
        with self._lock:
            if self._driver is me:
                raise UsageError(
                    "this thread is computing a step of the same model already: call the model"
                    " neither from on_token, logits_processor nor a signal handler"
                )
            request.waiting += 1
        try:
            while not (request.ended or ready()):
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    return False
                if self._driver is me or self._take_the_wheel(request, ready, me, left):
                    self._step()
            return True
        except BaseException:  # Ctrl-C
            with self._lock:
                if request.running and self._stepping:  # its row is in use: the driver ends it
                    request.error = request.error or _interrupted()
                else:
                    self._end(request, error=_interrupted())
            raise
        finally:
            with self._lock:
                request.waiting -= 1
                if self._driver is me:
                    self._driver = None
                self._find_driver()

    def end(self, request: Request, reason: FinishReason = "closed") -> None:
        """End a request early: nothing more is computed for it after the step that runs now."""
        with self._lock:
            request.asked_to_end = reason
            if not (request.running and self._stepping):
                self._end(request, finish=reason)

    def drives_here(self) -> bool:
        """Whether this thread is in a step: the call comes from a callback or a signal handler."""
        return self._stepping and self._driver is threading.current_thread()

    def abandon(self, request: Request) -> None:
        """End a request that nobody can read any more. It takes no lock: finalizers may call it."""
        request.asked_to_end = "closed"

    def _drop_abandoned(self) -> None:
        for request in [*self._steps.running, *self._queue]:
            if request.asked_to_end is not None:
                self.end(request, request.asked_to_end)

    def stats(self) -> Stats:
        """What the engine is doing and has done."""
        with self._lock:
            self._drop_abandoned()
            steps, guesses = self._steps, self._steps.speculation
            return Stats(
                rows=_rows(steps.running),
                queue=len(self._queue),
                cache_bytes=steps.bytes,
                prefix_bytes=sum(cache.bytes for cache in steps.prefix_caches),
                steps=steps.steps,
                prompt_tokens=steps.prompt_tokens,
                new_tokens=steps.new_tokens,
                prefix_hits=steps.prefixes.hits,
                prefix_tokens=steps.prefixes.hit_tokens,
                drafted=guesses.drafted if guesses else 0,
                accepted=guesses.accepted if guesses else 0,
                draft_steps=guesses.draft.steps if guesses and guesses.draft else 0,
            )

    def forget(self) -> None:
        """Empty the prefix cache."""
        with self._lock:
            for cache in self._steps.prefix_caches:
                cache.clear()

    def save_prefixes(self, path: str | Path) -> None:
        """Write the prefix cache to a file; see prefix_file.py."""
        with self._lock:
            save_prefixes(path, self._steps.prefixes, self._graph)

    def load_prefixes(self, path: str | Path) -> None:
        """Add the prefixes of a file to the prefix cache; see prefix_file.py."""
        with self._lock:
            load_prefixes(path, self._steps.prefixes, self._graph)
            self._steps.shrink(self.memory - self._steps.bytes)

    def close(self) -> None:
        """End all requests, and free the KV cache."""
        with self._lock:
            self._closed = True
            for request in [*self._steps.running, *self._queue]:
                self.end(request)
            for cache in self._steps.prefix_caches:
                cache.budget = 0
                cache.clear()

    # Who drives

    def _take_the_wheel(
        self,
        request: Request,
        ready: Callable[[], bool],
        me: threading.Thread,
        timeout: float | None,
    ) -> bool:
        """Become the driver; else wait for news of the request, and return False."""
        with self._lock:
            # Asked again with the lock: the driver tells once that a request has ended.
            if request.ended or ready():
                return False
            if self._driver is None or not self._driver.is_alive():  # dead: lost in a fork
                self._driver = me
                return True
            request.changed.wait(timeout)
            return False

    def _find_driver(self) -> None:
        """Let another thread drive, if none does and there is something to do."""
        if self._driver is not None and self._driver.is_alive():
            return
        self._driver = None
        every = [*self._steps.running, *self._queue]
        for request in every:
            if request.waiting:
                request.changed.notify_all()
                return
        if any(request.unattended for request in every):
            self._driver = threading.Thread(target=self._drive, name="gptx-engine", daemon=True)
            _WITH_A_THREAD.add(self)
            self._driver.start()

    def _drive(self) -> None:
        """The engine's own thread: steps until no request is unattended."""
        while True:
            with self._lock:
                if not any(one.unattended for one in (*self._steps.running, *self._queue)):
                    self._driver = None
                    self._find_driver()
                    return
            self._step()

    # Steps

    def _step(self) -> None:
        with self._lock:
            self._settle()
            self._admit()
            going = self._steps.plan()
            self._stepping = bool(going)
        if not going:
            return
        try:
            self._steps.run(going)
        except Exception as error:
            with self._lock:
                for one in going:
                    self._end(one.request, error=error)
        finally:
            with self._lock:
                self._stepping = False
                self._settle()

    def _admit(self) -> None:
        """Give rows to requests from the queue, in their order, as far as there is memory."""
        steps = self._steps
        while self._queue:
            together = [*steps.running, self._queue[0]]
            rows = _rows(together)
            needed = steps.bytes_with(rows, max(one.work.longest for one in together))
            if steps.running and (rows > self.max_rows or needed > self.memory):
                return
            request = together[-1]
            self._queue.popleft()
            steps.shrink(self.memory - needed)
            try:
                steps.begin(request)
            except Exception as error:  # too little memory
                request.error = error
                self._end(request, error=error)

    def _settle(self) -> None:
        """End the requests that are done, failed, were cancelled or are out of time.

        Wake those who wait for news of the others.
        """
        now = time.perf_counter()
        for request in [*self._steps.running, *self._queue]:
            if request.taking:  # Ctrl-C stopped it half-way
                self._end(request, error=_interrupted())
            elif request.error is not None or request.work.finish is not None:
                self._end(request, error=request.error)
            elif request.asked_to_end is not None:
                self._end(request, finish=request.asked_to_end)
            elif request.deadline is not None and now >= request.deadline:
                self._end(request, finish="time")
            else:
                self._ask(request)

    def _ask(self, request: Request) -> None:
        """End a request that the app has cancelled; else wake those who wait for news of it."""
        try:
            cancelled = request.cancelled is not None and request.cancelled()
        except BaseException as error:  # of the app's `cancel`
            self._end(request, error=raisable(error))
            if isinstance(error, KeyboardInterrupt) and is_main_thread():
                raise
            return
        if cancelled:
            self._end(request, finish="closed")
        elif request.running:
            self._tell(request)

    def _end(
        self,
        request: Request,
        *,
        finish: FinishReason | None = None,
        error: BaseException | None = None,
    ) -> None:
        """Take a request out of the engine."""
        if request.ended:
            return
        request.ended = True
        request.error = request.error or error
        request.work.finish = request.work.finish or finish
        if request.running:
            self._steps.end(request)
            self._steps.shrink(self.memory - self._steps.bytes)
        elif request in self._queue:
            self._queue.remove(request)
        self._tell(request)

    def _tell(self, request: Request) -> None:
        if request.waiting:
            request.changed.notify_all()
        if request.on_step is not None:
            request.on_step()

    def stop(self) -> None:
        """End all requests, and wait for the engine's own thread."""
        self.close()
        driver = self._driver
        if driver is not None and driver is not threading.current_thread():
            driver.join()


# The process must not end while a thread of an engine runs the graph: ONNX Runtime would be taken
# down under it.
_WITH_A_THREAD: weakref.WeakSet[Engine] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    for engine in list(_WITH_A_THREAD):
        engine.stop()


def _rows(requests: Iterable[Request]) -> int:
    return sum(len(request.work.rows) for request in requests)


def _interrupted() -> UsageError:
    return UsageError(
        "this request failed or was interrupted in the middle of a step: generate again"
    )
