"""A bell: one thread waits for it, and others ring it."""

from __future__ import annotations

import threading


class Bell:
    """Wakes the thread that waits for it; a ring before that is kept.

    threading.Condition would do, but Ctrl-C in its `wait` may leave its lock released.

    Threads: one at a time may ring it.
    """

    def __init__(self) -> None:
        self._silent = threading.Lock()
        self._silent.acquire()

    def ring(self) -> None:
        """Wake the thread that waits."""
        if self._silent.locked():
            self._silent.release()

    def wait(self, timeout: float | None) -> None:
        """Wait for a ring, but not longer than `timeout` seconds. None: as long as it takes."""
        self._silent.acquire(timeout=-1 if timeout is None else timeout)
