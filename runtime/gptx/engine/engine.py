"""The engine of a model: requests from any thread share the steps of one KV cache.

    submit -> queue -> a row, and steps (steps.py) -> ended      (requests.py)

Whoever waits for a request drives the steps, for all requests, until its own has news; then another
thread that waits takes over. Requests that no thread waits for are driven by a thread of the
engine, which ends when there are none. A lone call needs no other thread.

A lock guards the state of the requests. It is not held while the graph runs or a token is
sampled: only the driver touches the work and the rows meanwhile.

Ctrl-C may stop the main thread anywhere. If that was in the middle of a change of the state, all
rows are given back, and the requests that had one end with an error.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from gptx.engine.bell import Bell
from gptx.engine.draft_model import DraftModel
from gptx.engine.prefix_cache import PrefixCache
from gptx.engine.prefix_file import load_prefixes, save_prefixes
from gptx.engine.request import Request
from gptx.engine.requests import Requests
from gptx.engine.speculation import Speculation
from gptx.engine.state_lock import StateLock
from gptx.engine.stats import Stats
from gptx.engine.steps import Going, Steps, is_from_outside, raisable
from gptx.errors import UsageError
from gptx.generation.row_plan import FinishReason
from gptx.kv_cache.rows import Rows
from gptx.ort.graph import OnnxGraph
from gptx.system.fork import after_fork
from gptx.system.inside_library import ProcessEndsError, inside_library

TRIES = range(3)  # of what must happen although Ctrl-C is pressed again and again


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
        self.max_rows, self.memory = max_rows, memory
        self._graph = graph
        rows = Rows(graph, max_rows)
        guesses = None
        if speculate and rows.packed:
            smaller = None if draft is None else DraftModel(draft, max_rows, prefix_memory)
            guesses = Speculation(smaller)
        self._steps = Steps(rows, PrefixCache(prefix_memory), guesses)
        self._requests = Requests(
            self._steps, max_rows=max_rows, memory=memory, max_queue=max_queue
        )
        self._state = StateLock(self._repair)
        self._driver: threading.Thread | None = None
        self._closed = False
        after_fork(self._after_fork)

    # Requests

    def submit(self, request: Request) -> None:
        """Put a request into the queue.

        Raises UsageError if the engine is closed or has too few rows, QueueFullError if the queue
        is full, GptxError if the work needs more memory than the budget.
        """
        self._requests.check(request)
        try:
            with self._state.lock:
                if self._closed:
                    raise UsageError("this model is closed")
                if self._requests.is_full:
                    self._state.change(self._requests.drop_abandoned)
                self._requests.add(request)
                if request.unattended:
                    self._find_driver()
        except BaseException:  # Ctrl-C
            self.abandon(request)
            raise

    def wait(
        self, request: Request, ready: Callable[[], bool], timeout: float | None = None
    ) -> bool:
        """Wait until `ready()` is true or the request has ended, and drive the steps meanwhile.

        timeout: seconds. Returns False if they have passed. Raises UsageError if this thread is in
        a step already (in a callback, or a signal handler).
        """
        until = None if timeout is None else time.monotonic() + timeout
        me, bell = threading.current_thread(), Bell()
        if self._driver is me:
            raise _called_in_a_step()
        self._refuse_while_held()
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
            for _ in TRIES:  # others hang if Ctrl-C stops it
                try:
                    self._state.change(partial(self._leave, request, bell, failed))
                    break
                except BaseException as error:
                    interruption = error
            if interruption is not None:
                raise interruption

    def _leave(self, request: Request, bell: Bell, failed: bool) -> None:
        """This thread waits no longer. failed: because of an error, such as Ctrl-C."""
        if bell in request.bells:
            request.bells.remove(bell)
        self._give_up()
        if failed:
            self._requests.interrupt(request)
        self._find_driver()

    def _refuse_while_held(self) -> None:
        """Raise UsageError in a signal handler that interrupts the engine in this thread."""
        if self._state.held_here:
            raise _called_in_a_step()

    def end(self, request: Request, reason: FinishReason = "closed") -> None:
        """End a request early: nothing more is computed for it after the step that runs now."""
        request.asked_to_end = reason
        self._state.change(partial(self._requests.end_as_asked, request))

    def abandon(self, request: Request) -> None:
        """End a request that nobody can read any more. It takes no lock: finalizers may call it."""
        request.asked_to_end = "closed"

    def is_busy_here(self) -> bool:
        """Whether this thread is in the engine: a callback or a signal handler makes the call."""
        drives = self._requests.stepping and self._driver is threading.current_thread()
        return drives or self._state.held_here

    def stats(self) -> Stats:
        """What the engine is doing and has done."""
        with self._state.lock:
            self._state.change(self._requests.drop_abandoned)
            steps, guesses = self._steps, self._steps.speculation
            return Stats(
                rows=self._requests.rows,
                queue=len(self._requests.queue),
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
        self._state.change(self._steps.clear_prefixes)

    def save_prefixes(self, path: str | Path) -> None:
        """Write the prefix cache to a file; see prefix_file.py."""
        self._refuse_while_held()
        with self._state.lock:
            save_prefixes(path, self._steps.prefixes, self._graph)

    def load_prefixes(self, path: str | Path) -> None:
        """Add the prefixes of a file to the prefix cache; see prefix_file.py."""
        self._refuse_while_held()
        with self._state.lock:
            try:
                load_prefixes(path, self._steps.prefixes, self._graph)
            finally:
                self._steps.prefixes.count_bytes()
            self._steps.shrink(self.memory - self._steps.bytes)

    def close(self) -> None:
        """End all requests, and free the KV cache."""
        self._closed = True
        self._state.change(self._requests.end_all)

    # Who drives

    def _take_the_wheel(
        self, request: Request, ready: Callable[[], bool], me: threading.Thread
    ) -> bool:
        """Become the driver, if there is none and the request has no news."""
        with self._state.lock:
            # Asked again with the lock: the driver tells once that a request has ended.
            if request.ended or ready() or self._driver is not None:
                return False
            self._driver = me
            return True

    def _find_driver(self) -> None:
        """Let another thread drive, if none does and there is something to do."""
        if self._driver is not None:
            return
        every = self._requests.all
        for request in every:
            if request.bells:
                request.ring()
                return
        if any(request.unattended for request in every) and not inside_library.process_ends:
            self._start_thread()

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._drive, name="gptx-engine", daemon=True)
        if self._driver is None:  # else a signal handler has just started one
            self._driver = thread
            try:
                thread.start()
            except BaseException:  # Ctrl-C, or there are too many threads
                self._driver = None
                raise

    def _drive(self) -> None:
        """The engine's own thread: steps until no request is unattended."""
        try:
            while self._is_needed():
                self._step()
        except ProcessEndsError:
            pass  # whoever waits in the main thread drives
        finally:
            self._state.change(self._hand_over)

    def _is_needed(self) -> bool:
        """Whether the engine's own thread still drives, and a request needs it."""
        with self._state.lock:
            drives = self._driver is threading.current_thread()
            return drives and any(request.unattended for request in self._requests.all)

    def _hand_over(self) -> None:
        self._give_up()
        self._find_driver()

    def _give_up(self) -> None:
        """This thread drives no longer, if it did."""
        if self._driver is threading.current_thread():
            self._driver = None
            if self._requests.stepping:  # an error, such as Ctrl-C, ended the step
                self._after_step()

    # Steps

    def _step(self) -> None:
        self._ask_apps()
        going: list[Going] = []
        self._state.change(partial(self._requests.prepare, going))
        if going:
            try:
                self._steps.run(going)
            except ProcessEndsError:  # the main thread may go on with the requests
                raise
            except Exception as error:
                self._state.change(partial(self._requests.fail, going, error))
            finally:
                self._state.change(self._after_step)

    def _ask_apps(self) -> None:
        """Note which requests the app has cancelled."""
        with self._state.lock:
            asked = [request for request in self._requests.all if request.cancelled is not None]
        for request in asked:
            assert request.cancelled is not None
            try:
                if request.cancelled():
                    request.asked_to_end = "closed"
            except BaseException as error:
                if is_from_outside(error):
                    self._state.change(partial(self._requests.interrupt, request))
                    raise
                request.error = raisable(error)

    def _after_step(self) -> None:
        self._requests.stepping = False
        if not self._steps.whole:
            self._state.broken = True
        self._state.mend()
        self._requests.settle()

    def _repair(self) -> bool:
        """Make the state whole after a change that was stopped half-way; False: not now."""
        if self._requests.stepping:
            return False
        self._requests.give_rows_back()
        return True

    def _after_fork(self) -> None:
        """In a forked child: texts of the parent's other threads, and unattended ones, end."""
        self._state.after_fork()
        if self._driver is not threading.current_thread():
            self._driver = None
            if self._requests.stepping:
                self._requests.stepping, self._state.broken = False, True
        for request in self._requests.all:
            if request.bells or request.unattended:
                request.bells.clear()
                self.abandon(request)


def _called_in_a_step() -> UsageError:
    return UsageError(
        "this thread is computing a step of the same model already: call the model neither from"
        " on_token, logits_processor nor a signal handler"
    )
