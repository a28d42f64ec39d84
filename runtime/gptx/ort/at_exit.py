"""Let no thread be inside ONNX Runtime when the process ends, which takes ONNX Runtime down.

Daemon threads go on until then: those of an app, and the engine's own. The process would abort.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from types import TracebackType

from gptx.errors import GptxError


class InsideOnnxRuntime:
    """Held while a thread is inside ONNX Runtime. Raises GptxError in a thread that comes too late.

    Only the main thread still gets in when the process ends.
    """

    def __init__(self) -> None:
        self._threads: set[int] = set()
        self._is_ending = False

    def __enter__(self) -> None:
        me = threading.get_ident()
        self._threads.add(me)
        if self._is_ending and threading.current_thread() is not threading.main_thread():
            self._threads.discard(me)
            raise GptxError("the process ends, so nothing more is computed")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._threads.discard(threading.get_ident())

    def end(self) -> None:
        """Let nobody in any more, and wait until the other threads are out."""
        self._is_ending = True
        while self._threads - {threading.get_ident()}:
            time.sleep(0.001)

    def forget(self) -> None:
        """Forget the threads: those of a forked process's parent are not in it."""
        self._threads.clear()


inside_onnxruntime = InsideOnnxRuntime()
atexit.register(inside_onnxruntime.end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=inside_onnxruntime.forget)
