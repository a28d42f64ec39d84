"""Drafts: tokens that are guessed, fed with the last one, and kept if the model says the same.

A step with some tokens more takes little longer, as the weights are read once for all of them. The
logits behind a right guess are those that a step of its own would give, to the bit, on native
operators; so the text is the same, greedy or sampled.

Guesses come from the text itself: what followed the longest end of it that occurred before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

MOST = 7  # drafts of a row in a step
LONGEST_MATCH = 8  # longer matches are as good as this
RETRY = 24  # where drafts do not pay, one is tried after so many, to see whether they do now
SHORTEST_STEP = 2e-3  # seconds; looking for a guess takes some 10 microseconds


class Suffixes:
    """The longest end of a text that occurred in it before: a suffix automaton.

    (Blumer et al. 1985, https://doi.org/10.1016/0304-3975(85)90157-4.) Adding a token takes
    constant time on average.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens: list[int] = []
        self._next: list[dict[int, int]] = [{}]
        self._link, self._length, self._end = [-1], [0], [-1]
        self._last = 0
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        """Add a token to the text."""
        self.tokens.append(token)
        new = self._state(self._length[self._last] + 1, {})
        state = self._last
        while state >= 0 and token not in self._next[state]:
            self._next[state][token] = new
            state = self._link[state]
        self._link[new] = 0 if state < 0 else self._suffix(state, token)
        self._last = new

    def _suffix(self, state: int, token: int) -> int:
        """The state of `state`'s longest text with `token` behind it."""
        old = self._next[state][token]
        if self._length[state] + 1 == self._length[old]:
            return old
        clone = self._state(self._length[state] + 1, dict(self._next[old]))
        self._link[clone], self._end[clone] = self._link[old], self._end[old]
        self._link[old] = clone
        while state >= 0 and self._next[state].get(token) == old:
            self._next[state][token] = clone
            state = self._link[state]
        return clone

    def _state(self, length: int, following: dict[int, int]) -> int:
        self._next.append(following)
        self._link.append(-1)
        self._length.append(length)
        self._end.append(len(self.tokens) - 1)
        return len(self._next) - 1

    def repeated(self) -> tuple[int, int]:
        """The length of the longest end that occurred before, and the index behind that place."""
        link = self._link[self._last]
        if link <= 0:
            return 0, 0
        return self._length[link], self._end[link] + 1


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


def worth(rate: float, cost: StepCost, tokens: int, rows: int, most: int) -> int:
    """How many drafts of a row make the texts grow fastest.

    rate: how likely a guess is right. cost: of steps. tokens, rows: those that the step has
    already. A draft is worth it while it gives more tokens a second than the step without it.
    """
    fixed, each = cost.line
    chance, expected = 1.0, float(rows)
    for n in range(most):
        chance *= rate
        if chance * (fixed + each * (tokens + n)) < 1.1 * each * expected:  # a tenth: sampling it
            return n
        expected += chance
    return most


class Speculation:
    """Drafts for the rows of an engine, and what became of them.

    drafted, accepted: tokens that were guessed, and those that were right.
    """

    def __init__(self) -> None:
        self.drafted = self.accepted = 0
        self._cost = StepCost()
        # How likely a guess is right, by the length of the match that it comes from
        self._rates = [min(0.2 + 0.1 * n, 0.8) for n in range(LONGEST_MATCH + 1)]
        self._idle = 0  # rows without a guess since the last one

    def guess(self, text: Suffixes, *, tokens: int, rows: int, most: int) -> tuple[list[int], int]:
        """The next tokens of a text, at most `most`; and the length of the match, for `judge`.

        tokens, rows: those that the step has already.
        """
        match, at = text.repeated()
        match = min(match, LONGEST_MATCH)
        if not match or most < 1:
            return [], 0
        n = worth(self._rates[match], self._cost, tokens, rows, min(most, MOST))
        if not n:
            self._idle += 1
            n = int(self._idle >= RETRY)
        if n:
            self._idle = 0
        return text.tokens[at : at + n], match

    def judge(self, match: int, drafted: int, accepted: int) -> None:
        """Count the guesses of one row in a step."""
        self.drafted, self.accepted = self.drafted + drafted, self.accepted + accepted
        for hit in range(min(accepted + 1, drafted)):  # guesses behind a wrong one say nothing
            self._rates[match] += 0.1 * ((hit < accepted) - self._rates[match])

    def observe(self, tokens: int, seconds: float) -> None:
        """Count a step of decoding rows."""
        self._cost.observe(tokens, seconds)

    @property
    def pays(self) -> bool:
        """Whether steps take so long that looking for guesses is nothing beside them."""
        fixed, each = self._cost.line
        return fixed + each > SHORTEST_STEP
