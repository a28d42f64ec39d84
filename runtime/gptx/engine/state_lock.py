"""A lock for a state that an error, such as Ctrl-C, must not leave half-changed."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable


class StateLock:
    """Makes changes of a state, one at a time.

    repair: makes the state whole after a change that was stopped half-way. It returns False if this
    must wait until later. It may be stopped half-way, too, and is then called again.

    lock: to be held while the state is read. broken: True if the state may be half-changed.
    """

    def __init__(self, repair: Callable[[], bool]) -> None:
        self.lock = threading.RLock()
        self.broken = False
        self._repair, self._changing = repair, False
        self._later: deque[Callable[[], None]] = deque()

    @property
    def held_here(self) -> bool:
        """Whether this thread holds the lock.

        If it calls the engine then, the call comes from a signal handler, or from a function of the
        app.
        """
        return self.lock._is_owned()  # type: ignore[attr-defined]  # threading.Condition uses it

    def change(self, change: Callable[[], None]) -> None:
        """Change the state; behind the change that this thread is making already, if it is."""
        with self.lock:
            if self._changing:
                self._later.append(change)
                return
            self._changing = True
            try:
                self.mend()
                change()
                while self._later:
                    self._later.popleft()()
            except BaseException:
                self.broken = True
                self.mend()
                raise
            finally:
                self._changing = False

    def mend(self) -> None:
        """Make the state whole if it is broken, now or before the next change."""
        if self.broken and self._repair():
            self.broken = False

    def after_fork(self) -> None:
        """In a forked child: another thread of the parent may have held the lock."""
        if not self.held_here:
            if self._changing:
                self._changing, self.broken = False, True
            self.lock = threading.RLock()
            self._later.clear()
