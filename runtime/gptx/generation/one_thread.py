"""A guard for objects that several threads may call, but only one at a time."""

from __future__ import annotations

import threading

from gptx.errors import UsageError


class OneThread:
    """A reentrant lock that does not wait.

    `with guard:` raises UsageError if another thread holds the lock. message: the text of the
    error.
    """

    def __init__(self, message: str) -> None:
        self._message = message
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        if not self._lock.acquire(False):
            raise UsageError(self._message)

    def __exit__(self, *_: object) -> None:
        self._lock.release()
