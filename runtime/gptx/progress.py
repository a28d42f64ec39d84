"""Progress of long work on standard error: a moving bar on a terminal, a plain line a stage when piped."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Advance(Protocol):
    def __call__(self, amount: float, text: str | None = None, /) -> None:
        """Add to what is done; `text`, where given, replaces the stage's own on a terminal."""


@contextmanager
def stage(text: str, *, total: float | None = None, quiet: bool = False) -> Iterator[Advance]:
    """Show that `text` is going on; yields a function that adds to what is done of `total`. quiet: show nothing."""
    began = time.perf_counter()
    if quiet:
        yield lambda amount, text=None: None
        return
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = [SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()]
        if total is not None:
            columns[2:] = [BarColumn(), TimeElapsedColumn(), TextColumn("left:"), TimeRemainingColumn()]
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(text, total=total)
            yield lambda amount, text=None: bar.update(task, advance=amount, description=text)
    else:
        yield lambda amount, text=None: None
    print(f"{text}: {time.perf_counter() - began:.1f} s", file=sys.stderr)


def note(text: str) -> None:
    """A line that stays."""
    print(text, file=sys.stderr)
