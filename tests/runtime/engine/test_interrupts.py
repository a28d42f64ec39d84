"""Ctrl-C at any moment: no later call hangs or gives another text, and other threads' texts end.

Python raises KeyboardInterrupt where a function begins or has returned, and where a loop goes on.
`interrupted_at` raises it at one of these points of gptx's code in the main thread.
"""

from __future__ import annotations

import dis
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import FrameType
from typing import Any

import pytest

import gptx
from builders.ctrl_c import interrupted
from builders.native_graphs import native_operators, needs_library
from builders.waiting import within
from gptx.engine import speculation
from gptx.errors import UsageError
from gptx.model import DEFAULT_MODEL, Model

CHECKED = ("RESUME", "CALL", "JUMP_BACKWARD")  # instructions behind which Ctrl-C may come
PROMPT, OTHER = "Once upon a time", "The king said to the"
GREEDY: dict[str, Any] = {"max_new_tokens": 4, "temperature": 0}


def interrupted_at(call: Callable[[], object], at: int) -> bool:
    """Raise KeyboardInterrupt at point number `at` of a call. False if it has fewer points."""
    left, last = iter(range(at)), dict[FrameType, str]()

    def trace(frame: FrameType, event: str, _: object) -> Any:
        code = frame.f_code
        if "/gptx/" not in code.co_filename or code.co_name in ("__del__", "<genexpr>"):
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        if event == "opcode":
            before, last[frame] = last.get(frame, ""), dis.opname[code.co_code[frame.f_lasti]]
            if before.startswith(CHECKED) and next(left, None) is None:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    return interrupted(call, trace)


@pytest.fixture(params=["native", "native with guesses", "onnxruntime"])
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Model]:
    if request.param == "onnxruntime":
        with gptx.load(threads=1, max_rows=2) as opened:
            yield opened
        return
    guesses = "guesses" in request.param
    if guesses:
        monkeypatch.setattr(speculation, "SHORTEST_STEP", -1.0)
        monkeypatch.setattr(speculation, "worth", lambda *given: (min(given[4], 2), 1.0))
    draft = DEFAULT_MODEL if guesses else None
    with native_operators(), gptx.load(threads=1, max_rows=2, draft=draft) as opened:
        yield opened


@needs_library
@pytest.mark.parametrize("every", [301, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("other_text", ["none", "driven by this thread", "of another thread"])
def test_ctrl_c_at_any_point(model: Model, other_text: str, every: int) -> None:
    """every: one of so many points is tried. All of them take more than an hour."""
    ids = {text: model.generate(text, **GREEDY).token_ids for text in (PROMPT, OTHER)}
    at = 0
    for at in range(0, 10**6, every):
        model.engine.forget()
        opens = {"driven by this thread": model.stream, "of another thread": model.submit}
        other = opens[other_text](OTHER, **GREEDY) if other_text in opens else None
        stopped = interrupted_at(lambda: model.generate(PROMPT, **GREEDY), at)
        if other is not None:
            with suppress(UsageError):  # the interrupt ended this text, too
                assert within(other.result).token_ids == ids[OTHER], at
        for text in (PROMPT, OTHER):
            found = within(lambda text=text: model.generate(text, **GREEDY))
            assert found.token_ids == ids[text], at
        gc.collect()
        stats = model.stats()
        assert (stats.rows, stats.queue, stats.cache_bytes) == (0, 0, 0), at
        if not stopped:
            break
    assert at > 300
