"""Rows that begin alike read their common beginning once: one reads it, the others copy it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from gptx.engine.request import Row

LEAST = 64  # tokens that are worth a copy, or the wait for another row


def held_elsewhere(row: Row, others: Sequence[Row], *, most: int) -> tuple[Row, int] | None:
    """Another row that holds more of the first `most` tokens of `row`, and how many it holds.

    None if they are fewer than LEAST more.
    """
    found = None
    least = row.read + LEAST
    for other in others:
        if (
            other.read >= least
            and (n := common(row.tokens, other.tokens, other.read, most)) >= least
        ):
            found, least = (other, n), n + 1
    return found


def is_read_by(row: Row, earlier: Sequence[Row]) -> bool:
    """Whether one of the rows in front is about to read LEAST tokens or more that `row` needs."""
    return any(
        other.read >= row.read
        and not other.decoding
        and common(row.tokens, other.tokens, row.wanted_from) >= other.read + LEAST
        for other in takewhile(lambda other: other is not row, earlier)
    )


def common(a: Sequence[int], b: Sequence[int], *most: int) -> int:
    """The length of the common beginning of two lists of tokens, at most any of `most`."""
    low, high = 0, min(len(a), len(b), *most)
    if a[:high] == b[:high]:
        return high
    while high - low > 1:  # a[:low] == b[:low], a[:high] != b[:high]
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low
