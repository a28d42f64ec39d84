"""Show a loop's progress on standard error: a bar, or when piped a line for each tenth."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def tracked(items: Sequence[T], text: str) -> Iterator[T]:
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track

        yield from track(items, text, console=Console(stderr=True), transient=True)
        return
    began, told = time.perf_counter(), 0
    for done, item in enumerate(items, 1):
        yield item
        if done * 10 // len(items) > told:
            told = done * 10 // len(items)
            print(
                f"{text}: {done} of {len(items)}, {time.perf_counter() - began:.0f} s",
                file=sys.stderr,
            )
