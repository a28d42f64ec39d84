"""Turn token ids into text while they are generated, in pieces of whole characters."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Self

from gptx.text.tokenizer import Tokenizer

UNFINISHED = "\ufffd"  # the decoder's output for bytes that are not yet a whole character
CONTEXT = 8  # tokens of the prompt that are decoded with the first new ones


class Detokenizer:
    """Pieces of text that together are exactly what decoding all tokens at once gives.

    context: the tokens before the first generated one, for instance the prompt. They decide whether
    the text begins with a space.

    Cost: for each new token, the tokens of the last piece and all tokens since are decoded.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._hidden, self._bytes = tokenizer.hidden_ids, tokenizer.byte_ids
        self._ids = [token for token in context if token not in self._hidden][-CONTEXT:]
        self._context = tokenizer.decode(self._ids)
        if self._context.endswith(UNFINISHED):
            self._ids, self._context = [], ""
        # _ids[_start:_shown] are the tokens of the last piece, and _shown_text is their text. They
        # are decoded again together with the next tokens: the text of a token can depend on the
        # tokens before it.
        self._start, self._shown, self._shown_text = 0, len(self._ids), self._context
        self._pieces: list[str] = []

    def copy(self) -> Self:
        """A detokenizer that goes on from here by itself."""
        twin = copy.copy(self)
        twin._ids, twin._pieces = list(self._ids), list(self._pieces)
        return twin

    def push(self, token: int) -> str:
        """The text that this token completes; "" if it completes none."""
        if token in self._hidden:
            return ""
        self._ids.append(token)
        # Byte tokens in sequence are decoded together: their text is known only after the last one.
        if token in self._bytes:
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
        """The rest of the text, at the end. Bytes that are no whole character become U+FFFD."""
        text = self._tokenizer.decode(self._ids)
        if text.startswith(self._context):
            text = text[len(self._context) :]
        shown = "".join(self._pieces)
        piece = text[len(shown) :] if text.startswith(shown) else ""
        self._pieces.append(piece)
        return piece
