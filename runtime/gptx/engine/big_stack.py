"""Run work in a thread with a large stack: work in, a Future of its result out."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from gptx.system.fork import after_fork

T = TypeVar("T")


class BigStack:
    """Starts daemon threads with a stack of `size` bytes, all of one name.

    Threads: any number of threads may call it at the same time.
    """

    def __init__(self, size: int, name: str) -> None:
        self._size, self._name, self._lock = size, name, threading.Lock()
        after_fork(self._after_fork)

    def run(self, work: Callable[[], T]) -> Future[T]:
        """The result of `work`, which runs in a new thread. It cannot be cancelled."""
        result: Future[T] = Future()
        result.set_running_or_notify_cancel()  # others may wait for it, too

        def run() -> None:
            try:
                result.set_result(work())
            except BaseException as error:
                result.set_exception(error)

        with self._lock:  # the size is a setting of the process
            before = threading.stack_size()
            try:
                threading.stack_size(self._size)
                threading.Thread(target=run, name=self._name, daemon=True).start()
            finally:
                threading.stack_size(before)
        return result

    def _after_fork(self) -> None:
        self._lock = threading.Lock()
