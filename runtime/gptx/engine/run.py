"""Run pieces of work to their end: for tasks that need logits and no text."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from gptx.engine.control import is_cancelled
from gptx.engine.engine import Engine
from gptx.engine.request import Request, Work
from gptx.errors import GptxError


def run(engine: Engine, works: Sequence[Work], cancel: threading.Event | None = None) -> None:
    """Run all works to their end, beside each other.

    cancel: ends them once it is set. Raises GptxError if they were ended early, and whatever error
    ends one of them.
    """
    cancelled = is_cancelled(cancel)
    requests: list[Request] = []
    try:
        for work in works:
            requests.append(Request(work, cancelled=cancelled, continues=bool(requests)))
            engine.submit(requests[-1])
        for request in requests:
            engine.wait(request, lambda: False)
            if request.error is not None:
                raise request.error
            if request.work.finish == "closed":
                raise GptxError("this was cancelled, or the model closed, before its end")
    finally:
        for request in requests:
            engine.end(request)
