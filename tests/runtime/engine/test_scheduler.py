"""The plan of a step: every row goes on, prompts share fairly, and no more runs than is allowed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gptx.engine.scheduler import BESIDE, RowState, plan


@st.composite
def rows(draw: st.DrawFn) -> list[RowState]:
    states = []
    for row in range(draw(st.integers(1, 9))):
        decoding = draw(st.booleans())
        unread = draw(st.integers(1, 8 if decoding else 600))
        states.append(RowState(row, unread, draw(st.integers(0, 500)), decoding))
    return states


@given(rows(), st.sampled_from([32, 256, 512]), st.booleans())
def test_packed_rows_decode_together_and_share_what_is_left(
    states: list[RowState], chunk: int, last: bool
) -> None:
    found = plan(states, chunk=chunk, packed=True, decoded_last=last)
    decoding = {one.row: one.unread for one in states if one.decoding}
    assert {row: n for row, n in found.items() if row in decoding} == decoding
    reading = {one.row: one.unread for one in states if not one.decoding}
    shares = {row: n for row, n in found.items() if row in reading}
    room = min(BESIDE, chunk) if decoding else chunk
    assert sum(shares.values()) == min(room, sum(reading.values()))
    # Nobody gets more than another one who could have used it.
    for row, n in shares.items():
        assert 1 <= n <= reading[row]
        assert all(shares.get(other, 0) >= min(n - 1, need) for other, need in reading.items())


@given(rows(), st.sampled_from([32, 256, 512]), st.booleans())
def test_without_native_operators_a_step_decodes_or_reads_one_prompt(
    states: list[RowState], chunk: int, last: bool
) -> None:
    found = plan(states, chunk=chunk, packed=False, decoded_last=last)
    by_row = {one.row: one for one in states}
    if len(found) > 1 or all(by_row[row].decoding for row in found):
        assert found == {one.row: one.unread for one in states if one.decoding}
    else:
        ((row, n),) = found.items()
        left = by_row[row].unread - n
        assert 1 <= n <= chunk and left >= 0
        assert left != 1 and (n > 1 or by_row[row].unread == 1)


def test_decoding_and_reading_take_turns() -> None:
    states = [RowState(0, 1, 10, True), RowState(1, 100, 0, False)]
    assert plan(states, chunk=256, packed=False, decoded_last=False) == {0: 1}
    assert plan(states, chunk=256, packed=False, decoded_last=True) == {1: BESIDE}
