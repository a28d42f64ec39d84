"""A lock for a state that an error, such as Ctrl-C, must not leave half-changed."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable


class StateLock:
    """Makes changes of a state, one at a time.

    repair: makes the state whole after a change that was stopped half-way. It returns False if this
    must wait until later. It may be stopped half-way, too, and is then called again.

    lock: to be held while the state is read.
    """

    def __init__(self, repair: Callable[[], bool]) -> None:
        self.lock = threading.RLock()
        self._repair, self._broken = repair, False
        self._changing = False
        self._later: deque[Callable[[], None]] = deque()

    @property
    def changing_here(self) -> bool:
        """Whether this thread, which must hold the lock, is in the middle of a change.

        Then the call comes from a signal handler, or from a function of the app.
        """
        return self._changing

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
                self.mend(broken=True)
                raise
            finally:
                self._changing = False

    def mend(self, *, broken: bool = False) -> None:
        """Make the state whole, if it is not, now or before the next change.

        broken: True if this is where it was found to be half-changed.
        """
        self._broken = self._broken or broken
        if self._broken and self._repair():
            self._broken = False
