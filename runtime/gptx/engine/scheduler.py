"""What each row feeds in the next step of the engine: a pure function of the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Tokens of prompts that are read in a step in which other rows decode, together. On native
# operators they all run at once, so the step of the decoding rows becomes longer by these.
BESIDE = 32


@dataclass(frozen=True)
class RowState:
    """A row that goes on.

    row: its number. unread: tokens that the cache does not hold yet, at least 1. read: tokens that
    it holds. decoding: the prompt has been read, so `unread` are the last token and drafts.
    """

    row: int
    unread: int
    read: int
    decoding: bool


def plan(
    rows: Sequence[RowState], *, chunk: int, packed: bool, decoded_last: bool
) -> dict[int, int]:
    """The number of tokens that rows feed in the next step, by row.

    chunk: the most tokens of prompts in a step. packed: rows of all kinds run together (native
    operators). Otherwise a step either decodes rows, or reads one prompt; decoded_last: which of
    both the step before did. Then a prompt is never left with a single token, which would run in
    another kernel.

    Prompts share a step fairly: a short one is not kept waiting by a long one.
    """
    decoding = {one.row: one.unread for one in rows if one.decoding}
    reading = [one for one in rows if not one.decoding]
    room = min(BESIDE, chunk) if decoding else chunk
    if packed:
        return decoding | _shares(reading, room)
    if decoding and (not reading or not decoded_last):
        return decoding
    next_one = min(reading, key=lambda one: one.read)
    return {next_one.row: _piece(next_one.unread, max(room, 3))}


def _shares(reading: Sequence[RowState], room: int) -> dict[int, int]:
    """`room` tokens, spread evenly over the rows; what a short row leaves, others get."""
    shares: dict[int, int] = {}
    by_need = sorted(reading, key=lambda one: one.unread)
    for index, one in enumerate(by_need):
        shares[one.row] = min(one.unread, -(-room // (len(by_need) - index)))
        room -= shares[one.row]
    return {row: n for row, n in shares.items() if n}


def _piece(unread: int, room: int) -> int:
    """The next piece of a prompt, of two tokens or more if the prompt has so many left."""
    n = min(unread, room)
    return n - 1 if unread - n == 1 else n
