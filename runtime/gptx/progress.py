"""Progress of long work on standard error: a moving bar on a terminal; when piped a plain line at the end of each stage,
and one a minute on the way."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, Protocol

LINE_EVERY = 60.0  # seconds between the lines of a stage when piped


def has_bars() -> bool:
    """Whether progress moves: on a terminal that obeys escape sequences."""
    return sys.stderr.isatty() and not _is_dumb()


def color_system() -> Literal["auto"] | None:
    """What rich's Console takes. None: no colour, nothing bold or dim (https://no-color.org)."""
    return None if _is_dumb() or os.environ.get("NO_COLOR") else "auto"


def _is_dumb() -> bool:
    """A terminal that shows escape sequences as they are."""
    return os.environ.get("TERM", "").lower() in ("dumb", "unknown")


class Advance(Protocol):
    def __call__(self, amount: float, text: str | None = None, /) -> None:
        """Add to what is done; `text`, where given, says where it is: beside the bar, or in the minute's line."""


@contextmanager
def stage(text: str, *, total: float | None = None, quiet: bool = False) -> Iterator[Advance]:
    """Show that `text` is going on; yields a function that adds to what is done of `total`. quiet: show nothing."""
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

        columns = [SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()]
        if total is not None:
            columns[2:] = [
                BarColumn(),
                TimeElapsedColumn(),
                TextColumn("left:"),
                TimeRemainingColumn(),
            ]
        with Progress(
            *columns, console=Console(stderr=True, color_system=color_system()), transient=True
        ) as bar:
            task = bar.add_task(text, total=total)
            yield lambda amount, text=None: bar.update(task, advance=amount, description=text)
    else:
        yield _lines(text, total, began)
    print(f"{text}: {time.perf_counter() - began:.1f} s", file=sys.stderr)


def _lines(stage_text: str, total: float | None, began: float) -> Advance:
    done, said, latest = 0.0, began, ""

    def advance(amount: float, text: str | None = None, /) -> None:
        nonlocal done, said, latest
        done, latest, now = done + amount, text or latest, time.perf_counter()
        if now - said >= LINE_EVERY:
            said = now
            share = f"{done / total:.0%} after " if total else ""
            note(f"{stage_text}: {share}{now - began:.0f} s{f', {latest}' if latest else ''}")

    return advance


def note(text: str) -> None:
    """A line that stays."""
    print(without_orders(text) if sys.stderr.isatty() else text, file=sys.stderr)


# On a terminal a control character is an order: a model could move the cursor or set the title. Tab and newline stay.
_ORDERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def without_orders(text: str) -> str:
    return _ORDERS.sub("\N{REPLACEMENT CHARACTER}", text)
