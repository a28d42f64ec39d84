"""Rows that begin alike read their common beginning once: one reads it, the others copy it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from gptx.engine.request import Row
from gptx.text.prefix import common_length

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
            and (n := common_length(row.tokens, other.tokens, other.read, most)) >= least
        ):
            found, least = (other, n), n + 1
    return found


def is_read_by(row: Row, earlier: Sequence[Row]) -> bool:
    """Whether one of the rows in front is about to read LEAST tokens or more that `row` needs."""
    return any(
        other.read >= row.read
        and not other.decoding
        and common_length(row.tokens, other.tokens, row.wanted_from) >= other.read + LEAST
        for other in takewhile(lambda other: other is not row, earlier)
    )
