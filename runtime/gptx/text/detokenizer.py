"""Tokens into text while they come: whole characters only, and nothing of a stop string or behind it.

Detokenizer: token ids in, pieces of text out. StopStrings: token ids in, whether a stop string has come. Neither knows
where the tokens come from.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from gptx.text.tokenizer import Tokenizer

UNFINISHED = "\ufffd"  # what decoding makes of bytes that are no character yet
MOST_UNFINISHED = (
    16  # tokens that are read together in search of a whole character; two or three make up most
)
CONTEXT = 8  # tokens of the prompt that decide how the text after it begins (whether with a space)


class Detokenizer:
    """Pieces that put together are exactly what decoding all tokens at once gives.

    `context`: tokens before the first, so that text which goes on from a prompt begins with the space that belongs
    there. Each token costs the decoding of a few: those since the last piece, and those of the piece before it.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._hidden, self._bytes = tokenizer.hidden_ids, tokenizer.byte_ids
        self._ids = [token for token in context if token not in self._hidden][-CONTEXT:]
        self._context = tokenizer.decode(self._ids)
        if self._context.endswith(UNFINISHED):
            self._ids, self._context = [], ""
        # _ids[_start:_shown] are the last piece's tokens, which decide how the next is spelt; _shown_text is their text
        self._start, self._shown, self._shown_text = 0, len(self._ids), self._context
        self._pieces: list[str] = []

    def push(self, token: int) -> str:
        """The text that this token completes, often none."""
        if token in self._hidden:
            return ""
        self._ids.append(token)
        if token in self._bytes:  # how a run of bytes decodes is known only when it has ended
            return ""
        text = self._tokenizer.decode(self._ids[self._start :])
        if (
            text.endswith(UNFINISHED)
            or len(text) <= len(self._shown_text)
            or not text.startswith(self._shown_text)
        ):
            return ""
        piece = text[len(self._shown_text) :]
        self._start, self._shown = self._shown, len(self._ids)
        self._shown_text = self._tokenizer.decode(self._ids[self._start :])
        self._pieces.append(piece)
        return piece

    def flush(self) -> str:
        """What is left at the end: bytes that became no character come out as replacement characters."""
        text = self._tokenizer.decode(self._ids)
        if text.startswith(self._context):
            text = text[len(self._context) :]
        shown = "".join(self._pieces)
        piece = text[len(shown) :] if text.startswith(shown) else ""
        self._pieces.append(piece)
        return piece


class StopSet:
    """Stop strings, made ready for matching: what a token costs does not depend on how many there are."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = frozenset(stops)
        self._lengths = sorted({len(stop) for stop in self._stops})
        self._sorted = sorted(self._stops)
        self.longest = self._lengths[-1] if self._lengths else 0

    def find(self, text: str, after: int) -> int | None:
        """Where the first stop string begins that is complete only behind `after`. The first is the one that is complete
        first; of several complete at once, the longest."""
        for end in range(after + 1, len(text) + 1):
            for length in reversed(self._lengths[: bisect_right(self._lengths, end)]):
                if text[end - length : end] in self._stops:
                    return end - length
        return None

    def unfinished(self, text: str) -> int:
        """Length of the longest end of `text` that a stop string begins with, and goes on from."""
        for length in range(min(len(text), self.longest - 1), 0, -1):
            end = text[-length:]
            # the stop strings that begin with `end` stand behind it in order, `end` itself first
            at = bisect_right(self._sorted, end)
            if at < len(self._sorted) and self._sorted[at].startswith(end):
                return length
        return 0


class StopStrings:
    """Looks for stop strings in one row's tokens as they come, as transformers' StopStringCriteria does: in the text of
    the tokens, special tokens included, from the prompt's end on; what a token completes ends the row at once.

    `found`: there was one. `held`: how many characters at the end of the visible text belong to the stop string that was
    found, or may come to belong to one. `prompt` may be long: only its end is read.
    """

    def __init__(self, stops: StopSet, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self.found: bool = False
        self.held = 0
        self._stops, self._tokenizer = stops, tokenizer
        if not stops.longest:
            return
        # what stands before a token decides whether its text begins with a space
        self._before = tokenizer.encode("abcdef", add_special_tokens=False)
        self._before_text = tokenizer.decode(self._before, skip_special_tokens=False)
        self._text, self._visible = (
            "",
            "",
        )  # the end of the text that may begin a stop string; "1" where it is visible
        self._unfinished: list[
            int
        ] = []  # the last tokens, where their bytes are no whole character yet
        for token in prompt[-stops.longest :]:
            self._read(token, visible=False)

    def push(self, token: int, *, visible: bool) -> bool:
        """Whether a stop string was found. `visible`: the token's text is part of the completion's text."""
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
            begins = 0  # what the new tokens' text will be is not known yet
        else:
            self._unfinished.clear()
            self._text, self._visible = text[begins:], mask[begins:]
        self.held = mask[begins:].count("1")

    def _text_of(self, tokens: list[int]) -> str:
        """The text of tokens in the middle of a text."""
        if not tokens:
            return ""
        text = self._tokenizer.decode([*self._before, *tokens], skip_special_tokens=False)
        return text[len(self._before_text) :]
