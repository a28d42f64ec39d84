"""A guard for objects that several threads may call, but only one at a time."""

from __future__ import annotations

import threading

from gptx.errors import UsageError


class OneThread:
    """`with guard:` lets one thread in, again and again if it likes, and raises UsageError in any other meanwhile."""

    def __init__(self, says: str) -> None:
        self._says = says  # the error's message
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        if not self._lock.acquire(False):
            raise UsageError(self._says)

    def __exit__(self, *_: object) -> None:
        self._lock.release()
