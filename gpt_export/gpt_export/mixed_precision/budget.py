"""Parse --budget, and choose which mixes to measure to find the best one inside it.

A mix is only a number here: how many layers, in a fixed order, have been given more bits. What a
mix consists of and how it is measured is the caller's concern.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from gptx.errors import UsageError

SPACED = 5  # evenly spaced mixes that are measured first, from the smallest to the largest
STEPS = 3  # of bisection afterwards, between a mix outside the budget and one inside

UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_PERCENT = re.compile(
    r"(?:ppl\s*=\s*)?\+?\s*(\d{1,15}(?:\.\d{,15})?|\.\d{1,15})\s*%", re.IGNORECASE | re.ASCII
)
_SIZE = re.compile(
    r"(?:size\s*=\s*)?(\d{1,15}(?:\.\d{,15})?|\.\d{1,15})\s*((?:[kmg]i?)?)b",
    re.IGNORECASE | re.ASCII,
)


@dataclass(frozen=True)
class Budget:
    """A limit on exactly one of two: perplexity or size."""

    perplexity: float | None = None  # its relative rise: 0.005 is half a percent
    size: int | None = None  # bytes of the files in onnx/

    def __str__(self) -> str:
        if self.size is not None:
            return f"size {self.size / 1e6:,.4g} MB"
        return f"perplexity +{100 * (self.perplexity or 0.0):.4g}%"


def parse_budget(text: str) -> Budget:
    """Parse ppl=+0.5%, +0.5%, size=100MB, 100 MB, 1.2GB, 90MiB ... Raises UsageError."""
    text = text.strip()
    if found := _PERCENT.fullmatch(text):
        return Budget(perplexity=float(found[1]) / 100)
    if (found := _SIZE.fullmatch(text)) and (
        size := int(float(found[1]) * UNITS[found[2].lower()])
    ):
        return Budget(size=size)
    raise UsageError(
        f"--budget {text}: expected a rise of perplexity as in ppl=+0.5% or a size as in size=100MB"
    )


def spaced(top: int) -> list[int]:
    """At most SPACED evenly spaced numbers from 0 to `top`, both included."""
    return sorted({round(i * top / (SPACED - 1)) for i in range(SPACED)})


def smallest_inside(top: int, inside: Callable[[int], bool]) -> None:
    """Find the smallest mix for which `inside` is true, approximately.

    Tries spaced mixes, then bisects STEPS times between the smallest mix inside and the next
    smaller one outside. `inside` records what it measures; nothing is returned.
    """
    tried = {count: inside(count) for count in spaced(top)}
    for _ in range(STEPS):
        good = min((count for count, ok in tried.items() if ok), default=None)
        bad = max((count for count in tried if good is not None and count < good), default=None)
        if good is None or bad is None or good - bad < 2:
            return
        tried[(good + bad) // 2] = inside((good + bad) // 2)
