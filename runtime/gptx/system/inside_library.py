"""Let no thread be inside a native library when the process ends or is forked.

Daemon threads go on when the process ends: those of an app, and gptx's own. Inside ONNX Runtime or
llguidance they would make it abort. A forked child has copies of the locks that other threads held
inside a library, and nobody gives these back.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from types import TracebackType

from gptx.errors import GptxError


class ProcessEndsError(GptxError):
    """A thread would enter a native library although the process ends."""


class InsideLibrary:
    """Held while a thread is inside a native library.

    When the process ends, only the main thread still gets in: others get ProcessEndsError. While it
    is forked, only the thread that forks gets in; the others wait.
    """

    def __init__(self) -> None:
        self._inside: set[int] = set()
        self._forking: int | None = None  # the thread that forks
        self.process_ends = False

    def __enter__(self) -> None:
        me = threading.get_ident()
        self._inside.add(me)
        while self._forking not in (None, me):
            self._inside.discard(me)
            time.sleep(0.001)
            self._inside.add(me)
        if self.process_ends and threading.current_thread() is not threading.main_thread():
            self._inside.discard(me)
            raise ProcessEndsError("the process ends, so nothing more is computed")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._inside.discard(threading.get_ident())

    def end(self) -> None:
        """Let nobody in any more, and wait until the other threads are out."""
        self.process_ends = True
        self._wait_for_others()

    def before_fork(self) -> None:
        """Let nobody in until the process is forked, and wait until the other threads are out."""
        self._forking = threading.get_ident()
        self._wait_for_others()

    def after_fork(self) -> None:
        """Let all threads in again."""
        self._forking = None

    def after_fork_in_child(self) -> None:
        """Forget the parent's other threads."""
        self._forking = None
        self._inside.clear()

    def _wait_for_others(self) -> None:
        while self._inside - {threading.get_ident()}:
            time.sleep(0.001)


inside_library = InsideLibrary()
atexit.register(inside_library.end)
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(
        before=inside_library.before_fork,
        after_in_parent=inside_library.after_fork,
        after_in_child=inside_library.after_fork_in_child,
    )
