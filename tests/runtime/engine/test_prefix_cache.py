"""Stored beginnings of texts: what is found is what was stored, and the budget holds."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gptx.engine.prefix_cache import BLOCK, Parts, PrefixCache

texts = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 3 * BLOCK)).map(
        # texts with common beginnings of many lengths
        lambda pair: [7] * pair[1] + [pair[0]] * (pair[0] * 20)
    ),
    min_size=1,
    max_size=12,
)


def parts_of(tokens: list[int], start: int, end: int) -> Parts:
    """Keys and values that say which text and position they are of: (1, n, 1) and (2, n)."""
    values = np.cumsum(np.array(tokens) + 1)[start:end]
    return [values[None, :, None].astype(np.float32), np.stack([values, -values])]


def store(cache: PrefixCache, tokens: list[int]) -> None:
    cache.store(tokens, lambda start, end: parts_of(tokens, start, end))


def longest(stored: list[list[int]], tokens: list[int]) -> int:
    def common(one: list[int]) -> int:
        return next(
            (n for n, pair in enumerate(zip(one, tokens)) if pair[0] != pair[1]),
            min(len(one), len(tokens)),
        )

    return max(map(common, stored), default=0)


@given(texts, texts)
def test_the_longest_stored_beginning_is_found(
    stored: list[list[int]], asked: list[list[int]]
) -> None:
    cache = PrefixCache(10**9)
    for tokens in stored:
        store(cache, tokens)
    for tokens in asked:
        n, parts = cache.find(tokens)
        assert n == longest(stored, tokens)
        for found, expected in zip(parts, parts_of(tokens, 0, n)):
            np.testing.assert_array_equal(found[:, :n], expected)


@given(texts, st.integers(0, 20_000))
def test_the_budget_holds_and_what_was_used_last_stays(
    stored: list[list[int]], budget: int
) -> None:
    cache = PrefixCache(budget)
    for tokens in stored:
        store(cache, tokens)
        assert cache.bytes <= budget
        n, _ = cache.find(tokens)
        if cache.bytes + BLOCK * 20 < budget:  # a block has 20 bytes a token
            assert n == len(tokens)
    cache.shrink(0)
    assert cache.bytes == 0 and cache.find(stored[0])[0] == 0


def test_texts_that_begin_alike_share_memory() -> None:
    cache = PrefixCache(10**9)
    store(cache, [7] * (4 * BLOCK))
    once = cache.bytes
    for last in range(10):
        store(cache, [*[7] * (4 * BLOCK), last])
    assert cache.bytes < 1.1 * once


def test_the_least_recently_used_goes_first() -> None:
    cache = PrefixCache(3 * BLOCK * 20)
    for first in (1, 2, 3):
        store(cache, [first] * BLOCK)
    cache.find([1] * BLOCK)
    store(cache, [4] * BLOCK)
    assert [cache.find([first] * BLOCK)[0] for first in (1, 2, 3, 4)] == [BLOCK, 0, BLOCK, BLOCK]
