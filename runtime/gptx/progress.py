"""Progress of long work on standard error: a moving bar on a terminal, a plain line a stage when piped."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[float], None]


@contextmanager
def stage(text: str, *, total: float | None = None) -> Iterator[Advance]:
    """Show that `text` is going on; yields a function that adds to what is done of `total`."""
    began = time.perf_counter()
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = [SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()]
        if total is not None:
            columns[2:] = [BarColumn(), TimeElapsedColumn(), TextColumn("left:"), TimeRemainingColumn()]
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(text, total=total)
            yield lambda amount: bar.advance(task, amount)
    else:
        yield lambda amount: None
    print(f"{text}: {time.perf_counter() - began:.1f} s", file=sys.stderr)


def note(text: str) -> None:
    """A line that stays."""
    print(text, file=sys.stderr)
