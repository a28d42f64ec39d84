"""Collect SIGINT and SIGTERM, so that a run stops between two steps and not within one."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collect_signals() -> Iterator[list[int]]:
    """Yield a list to which the first SIGINT or SIGTERM is added; a second one stops at once.

    In a thread other than the main one, signals cannot be received: the list stays empty.
    """
    received: list[int] = []

    def receive(number: int, _: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    try:
        before = {
            number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)
        }
    except ValueError:  # not the main thread
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
