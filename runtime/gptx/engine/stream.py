"""A text while it is generated: pieces as they come, or the whole at the end."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Self

from gptx.engine.engine import Engine
from gptx.engine.new_text import Text
from gptx.engine.request import Request
from gptx.errors import UsageError, shown
from gptx.generation.option_kinds import is_number
from gptx.generation.transcript import Completion


class Stream:
    """Text while it is generated: iterate over it to get the text in pieces.

    Model.stream, Model.submit and Chat.stream return a Stream. A piece is never empty, and never
    ends within a character. `completion` has the text so far, the token ids, the finish reason and
    timings. `close`, or leaving a `with` block, ends the stream early. `result` waits for the rest.
    If the artifact has no tokenizer, iterating gives no pieces, and `completion` has only the token
    ids.

    The model computes when a piece is asked for, here or in another call at the same time. Pieces
    that were computed meanwhile are kept.

    Iterating raises ArtifactError if the model fails, and UsageError if the options forbid every
    token.

    Threads: one thread at a time may iterate; a second one gets UsageError. Any thread may call
    `close`: a thread that waits for a piece then gets no more of them.
    """

    def __init__(
        self,
        engine: Engine,
        request: Request,
        work: Text,
        *,
        on_end: Callable[[Completion], None] | None = None,
    ) -> None:
        self._engine, self._request, self._work = engine, request, work
        self._on_end = on_end
        self._read = 0  # tokens whose pieces were read
        self._ended = False
        self._closed = False  # close was called
        self._failed = False  # an error was raised
        self._reading = False  # a thread waits for a piece, or for the end
        # Held by the thread that reads the next piece, or that ends the stream
        self._process, self._lock = os.getpid(), threading.RLock()
        self._reader = threading.current_thread()  # the thread that read last

    @property
    def completion(self) -> Completion:
        """What was read so far, and all of it once the stream has ended."""
        found = self._work.transcript.completion(self._read)
        if not (self._ended or (self._closed and self._request.ended)):
            return replace(found, finish_reason=None)
        whole = self._read == len(self._work.transcript.token_ids)
        return replace(found, finish_reason=(self._work.finish if whole else None) or "closed")

    def has_ended(self) -> bool:
        """Whether nothing more will be computed."""
        return self._request.ended

    def has_news(self) -> bool:
        """Whether iterating returns at once, with a piece or at the end."""
        unread = self._work.transcript.pieces[self._read :]
        return any(unread) or self._request.ended

    def __iter__(self) -> Self:
        return self

    def is_read_elsewhere(self) -> bool:
        """Whether the stream goes on and was last read by another thread, which still runs."""
        if self._ended or self._closed or self._reader is threading.current_thread():
            return False
        return self._reader.is_alive()

    def __next__(self) -> str:
        try:
            if not self._take(0):
                if self._closed:  # by the thread that has the lock
                    raise StopIteration
                raise UsageError("another thread is reading this stream: let one thread read it")
            if self._ended or self._closed:
                raise StopIteration
            self._reading = True
            return self._next_piece()
        finally:
            self._let_go(reading=False)

    def _next_piece(self) -> str:
        pieces = self._work.transcript.pieces
        while self._wait():
            piece = pieces[self._read]
            self._read += 1
            if self._request.ended and self._request.error is None and self._read == len(pieces):
                self._end()
            if piece:
                return piece
        raise StopIteration

    def _wait(self) -> bool:
        """Wait for the next token. Returns False if there is none; then the stream has ended.

        Raises the request's error, once; after that, UsageError.
        """
        pieces, request = self._work.transcript.pieces, self._request
        if self._failed:
            raise UsageError(
                "this stream failed or was interrupted in the middle of a step: close it and"
                " generate again"
            ) from request.error
        if len(pieces) > self._read:
            return True
        try:
            self._engine.wait(request, lambda: len(pieces) > self._read)
        except BaseException:
            self._failed = request.ended
            raise
        if len(pieces) > self._read:
            return True
        if request.error is not None:
            self._failed = True
            raise request.error
        self._end()
        return False

    def result(self, timeout: float | None = None) -> Completion:
        """Wait until the text has ended, and return all of it, also if it was closed early.

        timeout: the most seconds to wait; None: as long as it takes. Raises TimeoutError if they
        have passed, and what iterating raises.
        """
        if timeout is not None:
            if not is_number(timeout) or not float(timeout) >= 0:
                raise UsageError(f"timeout is {shown(timeout)}, expected seconds of 0 or more")
            timeout = min(float(timeout), threading.TIMEOUT_MAX)
        request, until = self._request, None if timeout is None else time.monotonic() + timeout
        try:
            if not (self._take(timeout) and self._wait_for_end(until)):
                raise TimeoutError(f"the text has not ended after {timeout} seconds")
            self._read = len(self._work.transcript.pieces)
            if self._failed and request.error is not None:
                raise request.error
            if not self._ended:
                self._wait()
            return self.completion
        finally:
            self._let_go(reading=False)

    def _wait_for_end(self, until: float | None) -> bool:
        """Wait until the request has ended. False: it has not at the time.monotonic() `until`."""
        self._reading = True
        left = None if until is None else max(until - time.monotonic(), 0)
        return self._request.ended or self._engine.wait(self._request, lambda: False, left)

    def results(self) -> list[Completion]:
        """Wait until all texts of the call have ended: several, best first, of a beam search.

        Raises what `result` raises.
        """
        first = self.result()
        return [first, *(one.completion() for one in self._work.transcripts[1:])]

    def close(self, *, wait: bool = False) -> None:
        """End the stream. Its text so far stays in `completion`.

        wait: if another thread waits for a piece or the result, return only after it has got it.
        Otherwise `close` returns at once, and that thread ends the stream.
        """
        if not isinstance(wait, bool):
            raise UsageError(f"wait is {shown(wait)}, expected True or False")
        self._closed = True
        self._engine.end(self._request)
        # A thread that is reading ends the stream itself.
        try:
            self._take(None if wait else 0)
        finally:
            self._let_go(reading=self._reading)

    def _take(self, timeout: float | None) -> bool:
        """Take the lock, and wait for it so many seconds. False: another thread has it."""
        if self._process != os.getpid():  # forked while another thread had it
            self._process, self._lock = os.getpid(), threading.RLock()
        # In a callback or signal handler, this thread is in the middle of a step. The thread that
        # has the lock may wait for that step, so waiting for the lock would last for ever.
        seconds = 0 if self._engine.is_busy_here() else timeout
        if not self._lock.acquire(timeout=-1 if seconds is None else seconds):
            return False
        self._reader = threading.current_thread()
        return True

    def _let_go(self, *, reading: bool) -> None:
        """Give the lock back, if this thread has it: Ctrl-C may have come before `_take` got it."""
        if self._lock._is_owned():  # type: ignore[attr-defined]  # threading.Condition uses it
            self._reading = reading
            try:
                if self._closed and not reading:
                    self._end()
            finally:
                self._lock.release()

    def __del__(self) -> None:
        """Nobody can read the text now. One of `submit` goes on: its callbacks may be wanted."""
        request = getattr(self, "_request", None)  # None: __init__ failed
        if request is None or request.unattended:
            return
        if not request.ended:
            self._engine.abandon(request)
        self._end()

    def cancel(self) -> None:
        """Do what `close` does."""
        self.close()

    def _end(self) -> None:
        if not self._ended:
            if self._on_end is not None:
                self._on_end(self.completion)
            self._ended = True  # last: whoever finds it True relies on `on_end`

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
