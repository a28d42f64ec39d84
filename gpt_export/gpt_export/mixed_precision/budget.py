"""What a quantization may cost, read from the command line, and which mixes are tried to find the best one inside it.

A mix is known by a number here: of steps, in an order that is settled before, that each give a layer more bits. What a mix
is made of and how it is measured is not known.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from gptx.errors import UsageError

SPACED = 5  # mixes measured from the smallest to the largest, both included
STEPS = 3  # of bisection between the last of them outside the budget and the first inside

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
    """Exactly one of: perplexity, how much it may rise, 0.005 for half a percent; size, of the files in onnx/, bytes."""

    perplexity: float | None = None
    size: int | None = None

    def __str__(self) -> str:
        if self.size is not None:
            return f"size {self.size / 1e6:,.4g} MB"
        return f"perplexity +{100 * (self.perplexity or 0.0):.4g}%"


def parse_budget(text: str) -> Budget:
    """ppl=+0.5%, +0.5%, size=100MB, 100 MB, 1.2GB, 90MiB ...; UsageError for anything else."""
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
    """Some numbers from 0 to `top`, both included."""
    return sorted({round(i * top / (SPACED - 1)) for i in range(SPACED)})


def smallest_inside(top: int, inside: Callable[[int], bool]) -> None:
    """Try spaced mixes, then halve the way from the last one outside to the smallest inside, a few times."""
    tried = {count: inside(count) for count in spaced(top)}
    for _ in range(STEPS):
        good = min((count for count, ok in tried.items() if ok), default=None)
        bad = max((count for count in tried if good is not None and count < good), default=None)
        if good is None or bad is None or good - bad < 2:
            return
        tried[(good + bad) // 2] = inside((good + bad) // 2)
