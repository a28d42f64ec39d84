"""The engine of a model: requests from any thread share the steps of one KV cache.

    submit -> queue -> a row, and steps (steps.py) -> ended

Whoever waits for a request drives the steps, for all requests, until its own has news; then another
thread that waits takes over. Requests that no thread waits for are driven by a thread of the
engine, which ends when there are none. A lone call needs no other thread.

The lock guards the state of the requests. It is not held while the graph runs or a token is
sampled: only the driver touches the work and the rows meanwhile.

Ctrl-C may stop the main thread anywhere. A change of the state that was stopped half-way is not
finished: `_change` then gives all rows back, and the requests that had one end with an error.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from gptx.engine.bell import Bell
from gptx.engine.draft_model import DraftModel
from gptx.engine.prefix_cache import PrefixCache
from gptx.engine.prefix_file import load_prefixes, save_prefixes
from gptx.engine.request import Request, Work
from gptx.engine.speculation import Speculation
from gptx.engine.state_lock import StateLock
from gptx.engine.stats import Stats
from gptx.engine.steps import Going, Steps, is_from_outside, raisable
from gptx.errors import GptxError, UsageError
from gptx.generation.row_plan import FinishReason
from gptx.kv_cache.rows import Rows
from gptx.ort.graph import OnnxGraph

TRIES = 3  # of what must happen although Ctrl-C is pressed again and again


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
        self._state = StateLock(self._give_rows_back)
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
        request = Request(work, deadline, cancelled, on_step, unattended)
        try:
            with self._state.lock:
                self._enqueue(request)
        except BaseException:  # Ctrl-C
            self.abandon(request)
            raise
        return request

    def _enqueue(self, request: Request) -> None:
        if self._closed:
            raise UsageError("this model is closed")
        if len(self._queue) >= self.max_queue:
            self._state.change(self._drop_abandoned)
        if len(self._queue) >= self.max_queue:
            raise GptxError(
                f"the queue is full: {len(self._queue):,} requests wait for a row already; try"
                " again later"
            )
        self._queue.append(request)
        if request.unattended:
            self._find_driver()

    def wait(
        self, request: Request, ready: Callable[[], bool], timeout: float | None = None
    ) -> bool:
        """Wait until `ready()` is true or the request has ended, and drive the steps meanwhile.

        timeout: seconds. Returns False if they have passed. Raises UsageError if this thread is in
        a step already (in a callback, or a signal handler).
        """
        until = None if timeout is None else time.monotonic() + timeout
        me, bell = threading.current_thread(), Bell()
        with self._state.lock:
            if self._driver is me or self._state.changing_here:
                raise UsageError(
                    "this thread is computing a step of the same model already: call the model"
                    " neither from on_token, logits_processor nor a signal handler"
                )
        failed = True
        try:
            request.bells.append(bell)
            while not (request.ended or ready()):
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    failed = False
                    return False
                if self._driver is me or self._take_the_wheel(request, ready, me):
                    self._step()
                else:
                    bell.wait(left)
            failed = False
            return True
        finally:
            interruption: BaseException | None = None
            for _ in range(TRIES):  # others hang if a second Ctrl-C stops it
                try:
                    self._state.change(partial(self._leave, request, bell, failed))
                    break
                except BaseException as error:
                    interruption = error
            if interruption is not None:
                raise interruption

    def _leave(self, request: Request, bell: Bell, failed: bool) -> None:
        """A thread waits no longer for a request. failed: an error, such as Ctrl-C, ended that."""
        if bell in request.bells:
            request.bells.remove(bell)
        if self._driver is threading.current_thread():
            self._after_step()
        if failed and request.running and self._stepping:  # its row is in use: the driver ends it
            request.error = request.error or _interrupted()
        elif failed:
            self._end(request, error=_interrupted())
        self._give_up()

    def end(self, request: Request, reason: FinishReason = "closed") -> None:
        """End a request early: nothing more is computed for it after the step that runs now."""
        request.asked_to_end = reason
        self._state.change(partial(self._end_as_asked, request))

    def _end_as_asked(self, request: Request) -> None:
        if not (request.running and self._stepping):  # else the driver ends it
            self._end(request, finish=request.asked_to_end)

    def drives_here(self) -> bool:
        """Whether this thread is in a step: the call comes from a callback or a signal handler."""
        return self._stepping and self._driver is threading.current_thread()

    def abandon(self, request: Request) -> None:
        """End a request that nobody can read any more. It takes no lock: finalizers may call it."""
        request.asked_to_end = "closed"

    def _drop_abandoned(self) -> None:
        for request in self._requests():
            if request.asked_to_end is not None:
                self._end_as_asked(request)

    def _requests(self) -> list[Request]:
        return [*self._steps.running, *self._queue]

    def stats(self) -> Stats:
        """What the engine is doing and has done."""
        with self._state.lock:
            self._state.change(self._drop_abandoned)
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
        self._state.change(self._clear)

    def _clear(self) -> None:
        for cache in self._steps.prefix_caches:
            cache.clear()

    def save_prefixes(self, path: str | Path) -> None:
        """Write the prefix cache to a file; see prefix_file.py."""
        with self._state.lock:
            save_prefixes(path, self._steps.prefixes, self._graph)

    def load_prefixes(self, path: str | Path) -> None:
        """Add the prefixes of a file to the prefix cache; see prefix_file.py."""
        with self._state.lock:
            try:
                load_prefixes(path, self._steps.prefixes, self._graph)
            finally:
                self._steps.prefixes.count_bytes()
            self._steps.shrink(self.memory - self._steps.bytes)

    def close(self) -> None:
        """End all requests, and free the KV cache."""
        self._closed = True
        self._state.change(self._end_all)

    def _end_all(self) -> None:
        for request in self._requests():
            request.asked_to_end = "closed"
            self._end_as_asked(request)
        for cache in self._steps.prefix_caches:
            cache.budget = 0
        self._clear()

    # Who drives

    def _take_the_wheel(
        self, request: Request, ready: Callable[[], bool], me: threading.Thread
    ) -> bool:
        """Become the driver, if there is none and the request has no news."""
        with self._state.lock:
            # Asked again with the lock: the driver tells once that a request has ended.
            if request.ended or ready() or self._has_driver():
                return False
            self._driver = me
            return True

    def _has_driver(self) -> bool:
        """Whether a thread drives. One that was lost in a fork does not."""
        return self._driver is not None and self._driver.is_alive()

    def _find_driver(self) -> None:
        """Let another thread drive, if none does and there is something to do."""
        if self._has_driver():
            return
        self._driver = None
        every = self._requests()
        for request in every:
            if request.bells:
                request.ring()
                return
        if any(request.unattended for request in every):
            self._driver = threading.Thread(target=self._drive, name="gptx-engine", daemon=True)
            self._driver.start()

    def _drive(self) -> None:
        """The engine's own thread: steps until no request is unattended."""
        try:
            while self._is_unattended():
                self._step()
        finally:
            self._state.change(self._give_up)

    def _is_unattended(self) -> bool:
        """Whether a request needs the engine's own thread; that gives up the wheel if none does."""
        with self._state.lock:
            found = any(one.unattended for one in self._requests())
            if not found:
                self._state.change(self._give_up)
            return found

    def _give_up(self) -> None:
        """This thread drives no longer, if it did."""
        if self._driver is threading.current_thread():
            self._driver = None
            self._after_step()
        self._find_driver()

    # Steps

    def _step(self) -> None:
        self._ask_apps()
        going: list[Going] = []
        self._state.change(partial(self._prepare, going))
        if going:
            try:
                self._steps.run(going)
            except Exception as error:
                self._state.change(partial(self._fail, going, error))
            finally:
                self._state.change(self._after_step)

    def _ask_apps(self) -> None:
        """Note which requests the app has cancelled."""
        with self._state.lock:
            asked = [request for request in self._requests() if request.cancelled is not None]
        for request in asked:
            assert request.cancelled is not None
            try:
                if request.cancelled():
                    request.asked_to_end = "closed"
            except BaseException as error:  # of the app's `cancel`
                request.error = raisable(error)
                if is_from_outside(error):
                    raise

    def _prepare(self, going: list[Going]) -> None:
        """Plan a step: what each row feeds is added to `going`."""
        self._settle()
        self._admit()
        going += self._steps.plan()
        self._stepping = bool(going)

    def _fail(self, going: list[Going], error: Exception) -> None:
        """End the requests of a step that failed."""
        for one in going:
            self._end(one.request, error=error)

    def _after_step(self) -> None:
        self._stepping = False
        self._state.mend(broken=not self._steps.whole)
        self._settle()

    def _give_rows_back(self) -> bool:
        """Take all rows away, and end the requests that had one."""
        if self._stepping:
            return False
        self._steps.reset(self._requests())
        for request in self._requests():
            if request.running or request.ended:
                self._end(request, error=_interrupted())
        return True

    def _admit(self) -> None:
        """Give rows to requests from the queue, in their order, as far as there is memory."""
        steps = self._steps
        while self._queue:
            request = self._queue[0]
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
                self._queue.popleft()

    def _settle(self) -> None:
        """End the requests that are done, failed, are not wanted any more or are out of time.

        Wake those who wait for news of the others.
        """
        now = time.perf_counter()
        for request in self._requests():
            if request.taking:  # Ctrl-C stopped it half-way
                self._end(request, error=_interrupted())
            elif request.error is not None or request.work.finish is not None:
                self._end(request, error=request.error)
            elif request.asked_to_end is not None:
                self._end(request, finish=request.asked_to_end)
            elif request.deadline is not None and now >= request.deadline:
                self._end(request, finish="time")
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
        if request.gone:
            return
        if not request.ended:
            request.error = request.error or error
            request.work.finish = request.work.finish or finish
            self._steps.end(request)
            self._steps.shrink(self.memory - self._steps.bytes)
            request.ended = True
        self._tell(request)
        # Last: `_give_rows_back` finds the request there if this is stopped half-way.
        if request in self._steps.running:
            self._steps.running.remove(request)
        if request in self._queue:
            self._queue.remove(request)
        request.running, request.gone = False, True

    def _tell(self, request: Request) -> None:
        request.ring()
        if request.on_step is not None:
            request.on_step()


def _rows(requests: Iterable[Request]) -> int:
    return sum(len(request.work.rows) for request in requests)


def _interrupted() -> UsageError:
    return UsageError(
        "this request failed or was interrupted in the middle of a step: generate again"
    )
