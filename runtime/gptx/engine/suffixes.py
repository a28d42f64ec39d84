"""What occurred before in a text: its longest end that did, and the place behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LONGEST = 32  # tokens; longer ends are not looked for in another text


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

    def follow(self, text: Sequence[int], place: Place | None) -> Place:
        """The place of the longest end of another text, up to LONGEST tokens, in this one.

        place: what this gave when the other text was shorter, which saves time.
        """
        if place is None or place.suffixes is not self or place.read > len(text):
            place = Place(self, max(len(text) - LONGEST, 0))
        state, length = place.state, place.length
        for token in text[place.read :]:
            while state and token not in self._next[state]:
                state = self._link[state]
                length = self._length[state]
            state = self._next[state].get(token, 0)
            length = length + 1 if state else 0
        return Place(self, len(text), state, length)

    def end_of(self, state: int) -> int:
        """The index behind a place where the texts of a state occurred."""
        return self._end[state] + 1


@dataclass(frozen=True)
class Place:
    """Where the end of one text occurred in another, whose Suffixes these are.

    read: the tokens of the first text that were looked at. length: of the end.
    """

    suffixes: Suffixes
    read: int
    state: int = 0
    length: int = 0

    def behind(self) -> int:
        """The index in the other text behind that place."""
        return self.suffixes.end_of(self.state)
