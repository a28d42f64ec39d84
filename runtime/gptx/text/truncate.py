"""A text that is too long for its prompt: as much of its beginning as there is room for, and what was left out.

Training cuts its examples with the same function, so that a model is asked what it was trained.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable
from typing import NamedTuple

from gptx.text.tokenizer import Tokenizer


class Fitted(NamedTuple):
    prompt: str
    ids: list[int]
    left_out: int  # tokens; 0: the whole text is in it


def fit(text: str, asked: Callable[[str], str], tokenizer: Tokenizer, room: int) -> Fitted | None:
    """The prompt `asked(text)` where it has at most `room` tokens, else of the most words from the text's beginning that
    fit; None where not even the first does."""
    whole = tokenizer.encode(asked(text))
    if len(whole) <= room:
        return Fitted(asked(text), whole, 0)
    if room < 1:
        return None
    ends = [
        0,
        *(word.end() for word in re.finditer(r"\s*\S{1,20}", text)),
    ]  # 20: not all languages divide words

    def tokens(end: int) -> int:
        return len(tokenizer.encode(asked(text[:end])))

    most = min(
        room, len(ends) - 1
    )  # a word is a token or more, mostly: a long text is not encoded again and again
    while most < len(ends) - 1 and tokens(ends[most]) <= room:
        most = min(2 * most, len(ends) - 1)
    at = bisect_right(ends, room, lo=1, hi=most + 1, key=tokens) - 1
    if at < 1:
        return None
    prompt = asked(text[: ends[at]])
    ids = tokenizer.encode(prompt)
    return Fitted(prompt, ids, len(whole) - len(ids))
