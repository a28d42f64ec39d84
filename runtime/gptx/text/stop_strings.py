"""Find stop strings in tokens while they are generated.

StopSet holds the stop strings of a call. StopStrings looks for them in the tokens of one row.
"""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Sequence
from typing import Self

from gptx.text.detokenizer import UNFINISHED
from gptx.text.tokenizer import Tokenizer

# The most tokens to wait for a whole character; characters of several tokens mostly have 2 or 3.
MOST_UNFINISHED = 16


class StopSet:
    """Stop strings, prepared so that the time per token does not depend on their number."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = frozenset(stops)
        self._lengths = sorted({len(stop) for stop in self._stops})
        self._sorted = sorted(self._stops)
        self.longest: int = self._lengths[-1] if self._lengths else 0  # characters

    def find(self, text: str, after: int) -> int | None:
        """The index in `text` where the first stop string begins; None if there is none.

        The first stop string is the one that ends first. If several end at the same place, the
        longest counts. Stop strings that end within text[:after] do not count.
        """
        for end in range(after + 1, len(text) + 1):
            for length in reversed(self._lengths[: bisect_right(self._lengths, end)]):
                if text[end - length : end] in self._stops:
                    return end - length
        return None

    def unfinished(self, text: str) -> int:
        """The length of the longest end of `text` that is the beginning of a stop string."""
        for length in range(min(len(text), self.longest - 1), 0, -1):
            end = text[-length:]
            # In sorted order, the stop strings that begin with `end` follow `end` itself.
            at = bisect_right(self._sorted, end)
            if at < len(self._sorted) and self._sorted[at].startswith(end):
                return length
        return 0


class StopStrings:
    """Looks for stop strings in one row's tokens, as transformers' StopStringCriteria does.

    A stop string is found in the text of all tokens, special tokens included. It may begin at the
    end of the prompt. The token that completes it ends the row.

    prompt: token ids in front of the generated ones. Only the last ones are read, as many as the
    longest stop string has characters.
    """

    def __init__(self, stops: StopSet, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self.found: bool = False
        # Characters at the end of the visible text that belong to the stop string that was found,
        # or may become part of one.
        self.withheld: int = 0
        self._stops, self._tokenizer = stops, tokenizer
        if not stops.longest:
            return
        # Tokens are decoded behind this text, so that a space in front of the first one is kept.
        self._before = tokenizer.encode("abcdef", add_special_tokens=False)
        self._before_text = tokenizer.decode(self._before, skip_special_tokens=False)
        # _text: the end of the text that may become a stop string. _visible: for each character of
        # _text a "1" if it is visible, "0" if not (it is of the prompt or a special token).
        self._text, self._visible = "", ""
        # The last tokens, if their bytes are not yet a whole character.
        self._unfinished: list[int] = []
        for token in prompt[-stops.longest :]:
            self._read(token, visible=False)

    def copy(self) -> Self:
        """A StopStrings that goes on from here by itself."""
        twin = copy.copy(self)
        if self._stops.longest:
            twin._unfinished = list(self._unfinished)
        return twin

    def push(self, token: int, *, visible: bool) -> bool:
        """Read a new token. Returns True if a stop string was found, now or before.

        visible: True if the token's text is part of the completion's text.
        """
        if self._stops.longest and not self.found:
            self._read(
                token, visible=visible and token not in self._tokenizer.hidden_ids, find=True
            )
        return self.found

    def _read(self, token: int, *, visible: bool, find: bool = False) -> None:
        searched = len(self._text) + len(self._text_of(self._unfinished).rstrip(UNFINISHED))
        self._unfinished.append(token)
        new = self._text_of(self._unfinished)
        text, mask = self._text + new, self._visible + ("1" if visible else "0") * len(new)
        begins = self._stops.find(text, searched) if find else None
        self.found = begins is not None
        if begins is None:
            begins = len(text) - self._stops.unfinished(text)
        if not self.found and new.endswith(UNFINISHED) and len(self._unfinished) < MOST_UNFINISHED:
            begins = 0  # the text of the new tokens is not yet known: withhold everything
        else:
            self._unfinished.clear()
            self._text, self._visible = text[begins:], mask[begins:]
        self.withheld = mask[begins:].count("1")

    def _text_of(self, tokens: list[int]) -> str:
        """The text of tokens, spelt as in the middle of a text."""
        if not tokens:
            return ""
        text = self._tokenizer.decode([*self._before, *tokens], skip_special_tokens=False)
        return text[len(self._before_text) :]
