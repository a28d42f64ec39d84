"""How readers of a checkpoint tell the caller what they leave out or assume."""

from __future__ import annotations

from collections.abc import Callable

Tell = Callable[[str], None]  # is given one line of text for a person


def quiet(line: str) -> None:
    """A Tell that shows nothing."""
