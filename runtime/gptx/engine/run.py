"""Run pieces of work to their end: for tasks that need logits and no text."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from gptx.engine.control import is_cancelled
from gptx.engine.engine import Engine
from gptx.engine.request import Request, Work
from gptx.errors import GptxError, QueueFullError

PAUSE = 0.01  # seconds until a call that is under way looks again for a place in the queue


def run(engine: Engine, works: Sequence[Work], cancel: threading.Event | None = None) -> None:
    """Run all works to their end, beside each other.

    cancel: ends them once it is set. Raises GptxError if they were ended early, and whatever error
    ends one of them.
    """
    cancelled = is_cancelled(cancel)
    requests: list[Request] = []
    try:
        for work in works:
            requests.append(Request(work, cancelled=cancelled))
            _submit(engine, requests)
        for request in requests:
            engine.wait(request, lambda: False)
            if request.error is not None:
                raise request.error
            if request.work.finish == "closed":
                raise GptxError("this was cancelled, or the model closed, before its end")
    finally:
        for request in requests:
            engine.end(request)


def _submit(engine: Engine, requests: list[Request]) -> None:
    """Submit the last of the requests. If the queue is full, wait until an earlier one has ended.

    Raises QueueFullError if it is the first.
    """
    *earlier, new = requests
    while True:
        try:
            return engine.submit(new)
        except QueueFullError:
            if not earlier:
                raise
        going = [request for request in earlier if not request.ended]
        if going:
            engine.wait(going[0], lambda: False)
        else:
            time.sleep(PAUSE)
