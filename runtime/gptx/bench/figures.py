"""Repeated measurements of one quantity: median, lowest, highest, and ratios between engines."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Which = Literal["median", "lowest", "highest"]


@dataclass(frozen=True)
class Spread:
    """Measurements of one quantity, rounded to six significant digits."""

    median: float
    lowest: float
    highest: float
    samples: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Sum up the measurements `values`. Raises statistics.StatisticsError if there are none."""
        found = list(values)
        median, lowest, highest = (
            float(f"{value:.6g}") for value in (statistics.median(found), min(found), max(found))
        )
        return cls(median, lowest, highest, len(found))

    def times(self, factor: float) -> Spread:
        return Spread(
            self.median * factor, self.lowest * factor, self.highest * factor, self.samples
        )

    def ratio(self, first: Spread, of: Which = "median") -> float | None:
        """This median divided by the median of `first`; None if the latter is 0.

        of: "lowest" or "highest" divides these values instead.
        """
        ours, theirs = getattr(self, of), getattr(first, of)
        return round(ours / theirs, 4) if theirs else None


Spreads = Mapping[str, Spread]


def with_ratios(values: Spreads, first: Spreads) -> dict[str, dict[str, Any]]:
    """For JSON: each Spread, with `ratio` to that of the first engine."""
    return {
        name: asdict(value) | ({"ratio": value.ratio(first[name])} if name in first else {})
        for name, value in values.items()
    }
