"""Ends of a text that occurred before, in it and in earlier outputs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gptx
from builders.native_graphs import native_kernels, needs_library
from gptx.engine.suffixes import LONGEST, Suffixes

TOKENS = st.lists(st.integers(0, 2), max_size=60)


def longest_end(text: list[int], other: list[int]) -> int:
    """The length of the longest end of `text`, up to LONGEST, that occurs in `other`."""
    places = [other[n : n + length] for length in range(LONGEST + 1) for n in range(len(other))]
    return max(
        (n for n in range(min(len(text), LONGEST) + 1) if text[len(text) - n :] in places),
        default=0,
    )


@given(other=TOKENS, text=TOKENS, at=st.integers(0, 60))
def test_the_end_of_a_text_in_another(other: list[int], text: list[int], at: int) -> None:
    suffixes = Suffixes(other)
    place = suffixes.follow(text, suffixes.follow(text[:at], None))
    length = min(place.length, LONGEST)
    assert length == longest_end(text, other)
    if place.length:
        end = place.behind()
        assert other[end - place.length : end] == text[len(text) - place.length :]


@needs_library
@pytest.mark.usefixtures(native_kernels.__name__)
def test_an_earlier_output_is_guessed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptx.engine.speculation.SHORTEST_STEP", -1.0)
    # Whether drafts pay depends on the machine's load: here, they always do.
    monkeypatch.setattr("gptx.engine.speculation.worth", lambda *given: (min(given[4], 8), 1.0))
    with gptx.load(threads=1) as model:
        first = model.generate("The old king", temperature=0.9, seed=3, max_new_tokens=60)
        again = model.generate("The old king", temperature=0.9, seed=3, max_new_tokens=60)
    assert again.token_ids == first.token_ids
    assert again.accepted > max(first.accepted, 20)
