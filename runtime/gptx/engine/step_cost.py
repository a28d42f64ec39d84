"""How long a step of n tokens takes on this machine, learned from the steps that were taken."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class StepCost:
    """How long a step of n tokens takes: seconds = fixed + each * n, fitted to recent steps.

    Least squares whose observations fade. Two that were never made keep it sensible at first: one
    more token lengthens a step by an eighth.
    """

    FADE = 0.98
    sums: list[float] = field(default_factory=lambda: [0.0] * 5)  # 1, n, n n, t, n t

    def observe(self, n: int, seconds: float) -> None:
        """Count a step of `n` tokens."""
        if not self.sums[0]:
            alone = seconds / (1 + (n - 1) / 8)
            self._add(1, alone)
            self._add(9, 2 * alone)
        self.sums = [one * self.FADE for one in self.sums]
        self._add(n, seconds)

    def _add(self, n: int, seconds: float) -> None:
        for at, value in enumerate((1.0, n, n * n, seconds, n * seconds)):
            self.sums[at] += value

    @property
    def line(self) -> tuple[float, float]:
        """`fixed` and `each`, in seconds; (0, 0) before the first step."""
        count, n, nn, t, nt = self.sums
        spread = count * nn - n * n
        if spread <= 0:
            return 0.0, 0.0
        each = max((count * nt - n * t) / spread, 0.0)
        return max((t - each * n) / count, 0.0), each
