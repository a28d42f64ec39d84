"""Rows of one KV cache that come and go: tokens of several rows in, logits out.

A row is a number. `open` gives a free one, `close` frees it. The cache has memory for one row at
first, and for more when more are open. Without open rows it has none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gptx.kv_cache.feed import Feed
from gptx.kv_cache.memory_limit import cache_bytes
from gptx.kv_cache.native import GROUP, NativeCache
from gptx.kv_cache.open import Cache, open_cache
from gptx.kv_cache.shared_buffer import capacity_for
from gptx.ort.graph import OnnxGraph


class Rows:
    """The KV cache of at most `most` rows.

    Threads: only one thread at a time may call it.
    """

    def __init__(self, graph: OnnxGraph, most: int) -> None:
        self._graph, self._most = graph, most
        self._limit = graph.manifest.model.n_ctx
        self._cache: Cache | None = None
        self._lengths: list[int] = []  # tokens of each row
        self._open: set[int] = set()
        self._failed = False  # a run failed half-way: the cache may hold more than _lengths say

    @property
    def packed(self) -> bool:
        """Whether tokens of several rows run together without changing a bit (native operators)."""
        return self._graph.kernels is not None

    @property
    def chunk(self) -> int:
        """The most tokens of a run: the artifact's prefill_chunk."""
        return self._graph.manifest.prefill_chunk

    @property
    def group(self) -> int:
        """`read` begins at a multiple of this many tokens."""
        return GROUP if self.packed else 1

    @property
    def bytes(self) -> int:
        """The memory of the cache."""
        return self._bytes(len(self._lengths), self._cache.capacity if self._cache else 0)

    def bytes_with(self, rows: int, longest: int) -> int:
        """The memory that the cache needs for so many rows, the longest of so many tokens."""
        return self._bytes(_rounded(rows, self._most), longest)

    def _bytes(self, rows: int, tokens: int) -> int:
        if not rows:
            return 0
        logits = rows * self._graph.manifest.model.n_logits * self._graph.logits_dtype.itemsize
        return cache_bytes(self._graph, rows, capacity_for(tokens, self._limit)) + logits

    def open(self) -> int:
        """A row that holds no tokens. There must be a free one."""
        row = next(row for row in range(self._most) if row not in self._open)
        if self._cache is None:
            self._cache, self._lengths = open_cache(self._graph, 1, limit=self._limit), [0]
        if row >= len(self._lengths):
            rows = _rounded(row + 1, self._most)
            self._cache.add_rows(rows, max(self._lengths))
            self._lengths += [0] * (rows - len(self._lengths))
        self._open.add(row)
        return row

    def close(self, row: int) -> None:
        """Free a row. The memory is freed with the last one."""
        self._open.discard(row)
        if self._open:
            self.keep(row, 0)
        else:
            self.close_all()

    def close_all(self) -> None:
        """Free all rows, and the memory."""
        self._open = set()
        self._cache, self._lengths, self._failed = None, [], False

    def keep(self, row: int, length: int) -> None:
        """Drop the tokens of a row behind its first `length`."""
        if self._lengths[row] != length:
            self._lengths[row] = length
            self._opened().rewind(self._lengths)

    def length(self, row: int) -> int:
        """The number of tokens that a row holds."""
        return self._lengths[row]

    def run(self, feeds: Sequence[Feed]) -> list[np.ndarray]:
        """Append tokens to rows; returns for each feed the logits that it wants, (wanted, V).

        The arrays may be overwritten by the caller, and are by the next call. If it raises an
        error, the rows are as they were before.
        """
        cache = self._opened()
        self._graph.huge_pages.count_run()
        if self._failed:
            cache.rewind(self._lengths)
        self._failed = True
        if isinstance(cache, NativeCache):
            logits = cache.run(feeds, self._lengths)
        else:
            logits = _run_apart(cache, feeds, self._lengths)
        lengths = self._lengths.copy()
        for feed in feeds:
            lengths[feed.row] += len(feed.ids)
        self._lengths, self._failed = lengths, False
        return logits

    def read(self, row: int, start: int, end: int) -> list[np.ndarray]:
        """Copies of a row's keys and values at the positions `start` to before `end`.

        start: a multiple of `group`. Returns (G, n, ...) for each array of the cache.
        """
        return self._opened().read(row, start, end)

    def write(self, row: int, n: int, parts: Sequence[np.ndarray]) -> None:
        """Make what `read` gave for the positions 0 to n or more the first n tokens of a row."""
        self._opened().write(row, n, parts)
        self._lengths[row] = n

    def _opened(self) -> Cache:
        assert self._cache is not None
        return self._cache


def _rounded(rows: int, most: int) -> int:
    """The next power of two, but not more than `most`."""
    return min(1 << (rows - 1).bit_length(), most)


def _run_apart(cache: Cache, feeds: Sequence[Feed], lengths: Sequence[int]) -> list[np.ndarray]:
    """Decode rows of one token together, and read the others one by one.

    ONNX Runtime's operators give a row the bits that it has alone only in runs of this kind.
    """
    after, logits = list(lengths), {}
    ones = [feed for feed in feeds if len(feed.ids) == 1 == feed.wanted]
    if ones:
        tokens: list[int | None] = [None] * len(lengths)
        for feed in ones:
            tokens[feed.row] = feed.ids[0]
        cache.decode(tokens, lengths)
        for feed in ones:
            logits[feed.row] = cache.logits[feed.row]
            after[feed.row] += 1
    rest = [feed for feed in feeds if feed.row not in logits]
    if rest:  # these runs write to the same array
        logits = {row: array.copy() for row, array in logits.items()}
    for feed in rest:
        ids = np.array(feed.ids, np.int64)
        out = np.empty((len(ids), cache.logits.shape[2]), np.float32) if feed.wanted > 1 else None
        cache.prefill({feed.row: ids}, after, None if out is None else {feed.row: out})
        every = cache.logits[feed.row].copy() if out is None else out
        logits[feed.row] = every[len(every) - feed.wanted :]
    return [logits[feed.row] for feed in feeds]
