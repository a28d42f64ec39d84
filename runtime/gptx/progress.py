"""Show the progress of long work on standard error.

On a terminal a bar moves. Otherwise (in a pipe or a file) there is a plain line each minute, and
one at the end of each stage.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, Protocol

LINE_EVERY = 60.0  # seconds between the plain lines of a stage


def has_bars() -> bool:
    """True if standard error is a terminal that can show a moving bar."""
    return sys.stderr.isatty() and not _is_dumb()


def color_system() -> Literal["auto"] | None:
    """The argument color_system for rich's Console.

    None, for plain text, if NO_COLOR is set (https://no-color.org) or the terminal is dumb.
    """
    return None if _is_dumb() or os.environ.get("NO_COLOR") else "auto"


def _is_dumb() -> bool:
    """True for a terminal that would show escape sequences as characters."""
    return os.environ.get("TERM", "").lower() in ("dumb", "unknown")


class Advance(Protocol):
    """The function that `stage` yields."""

    def __call__(self, amount: float, text: str | None = None, /) -> None:
        """Add `amount` to the work done.

        text: the current place in the work, such as "step 20". It is shown beside the bar, or in
        the next plain line.
        """


@contextmanager
def stage(text: str, *, total: float | None = None, quiet: bool = False) -> Iterator[Advance]:
    """Show the progress of a stage of work; `text` names it.

    total: the amount of work; None if it is not known. Yields a function that adds to the work done
    (see Advance). quiet: show nothing.
    """
    began = time.perf_counter()
    if quiet:
        yield lambda amount, text=None: None
        return
    if has_bars():
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        console = Console(stderr=True, color_system=color_system())
        columns = [SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()]
        if total is not None:
            left = [TextColumn("left:"), TimeRemainingColumn()]
            # A narrow terminal has no room for all columns, and rich would cut the times.
            narrow = console.width < 80
            columns[2:] = [BarColumn(8), *left] if narrow else [BarColumn(), columns[2], *left]
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(text, total=total)
            yield lambda amount, text=None: bar.update(task, advance=amount, description=text)
    else:
        yield _lines(text, total, began)
    print(f"{text}: {time.perf_counter() - began:.1f} s", file=sys.stderr)


def _lines(stage_text: str, total: float | None, began: float) -> Advance:
    """An Advance that prints a line every LINE_EVERY seconds."""
    done, printed, latest = 0.0, began, ""

    def advance(amount: float, text: str | None = None, /) -> None:
        nonlocal done, printed, latest
        done, latest, now = done + amount, text or latest, time.perf_counter()
        if now - printed >= LINE_EVERY:
            printed = now
            share = f"{done / total:.0%} after " if total else ""
            note(f"{stage_text}: {share}{now - began:.0f} s{f', {latest}' if latest else ''}")

    return advance


def note(text: str) -> None:
    """Print a line on standard error."""
    print(without_control_characters(text) if sys.stderr.isatty() else text, file=sys.stderr)


_CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all except tab and newline


def without_control_characters(text: str) -> str:
    """The text with U+FFFD in place of control characters, for a terminal.

    A model could otherwise move the cursor or change the terminal's title. Tabs and newlines stay.
    """
    return _CONTROL_CHARACTERS.sub("\N{REPLACEMENT CHARACTER}", text)
