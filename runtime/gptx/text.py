"""Tokens into text while they come: whole characters only, and nothing of a stop string or behind it.

Detokenizer: token ids in, pieces of text out. StopStrings: pieces in, pieces out. Neither knows where they come from.
"""

from __future__ import annotations

from collections.abc import Sequence

from gptx.tokenizer import Tokenizer

UNFINISHED = "\ufffd"  # what decoding makes of bytes that are no character yet
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
        if text.endswith(UNFINISHED) or len(text) <= len(self._shown_text) or not text.startswith(self._shown_text):
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


class StopStrings:
    """Cuts text before the first stop string, wherever the pieces are cut.

    The first is the one that is complete first; of several complete at once, the longest. `found`: there was one.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""  # the longest end of the text so far that may be the start of a stop string
        self.found: bool = False

    def push(self, piece: str) -> str:
        """The text that certainly belongs to no stop string."""
        if not self._stops or self.found:
            return "" if self.found else piece
        text = self._held + piece
        hits = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if hits:
            self.found, self._held = True, ""
            return text[: min(hits)[1]]
        held = max(overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with, and goes on from."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
