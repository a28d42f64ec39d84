"""Shorten a text that is too long for the context; the prompt around the text stays whole."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable
from typing import NamedTuple

from gptx.text.tokenizer import Tokenizer

# A text may be cut after each match. Longer words are split every 20 characters, because some
# languages have no spaces between words.
WORD = re.compile(r"\s*\S{1,20}")


class Fitted(NamedTuple):
    """A prompt that fits into the context."""

    prompt: str
    ids: list[int]
    left_out: int  # tokens of the text's end that were cut off; 0 if the text is whole


def fit(text: str, ask: Callable[[str], str], tokenizer: Tokenizer, room: int) -> Fitted | None:
    """The prompt `ask(text)`, with as many words from the start of `text` as fit.

    ask: puts a text into the prompt's template. room: the most tokens that the prompt may have.
    Returns None if not even one word fits.
    """
    whole = tokenizer.encode(ask(text))
    if len(whole) <= room:
        return Fitted(ask(text), whole, 0)
    if room < 1:
        return None
    ends = [0, *(word.end() for word in WORD.finditer(text))]

    def tokens(end: int) -> int:
        return len(tokenizer.encode(ask(text[:end])))

    # Most words have at least one token, so `room` words are a good first guess. Without it, a very
    # long text would be encoded whole again and again.
    most = min(room, len(ends) - 1)
    while most < len(ends) - 1 and tokens(ends[most]) <= room:
        most = min(2 * most, len(ends) - 1)
    at = bisect_right(ends, room, lo=1, hi=most + 1, key=tokens) - 1
    if at < 1:
        return None
    prompt = ask(text[: ends[at]])
    ids = tokenizer.encode(prompt)
    return Fitted(prompt, ids, len(whole) - len(ids))
