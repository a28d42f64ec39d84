"""The KV cache of the step graph, whose native operators run packed tokens of several rows.

open.py explains the methods. B: rows, G: key-value heads, D: head size, V: logits of one token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from gptx.kv_cache.feed import Feed
from gptx.kv_cache.memory_limit import check_memory
from gptx.kv_cache.shared_buffer import Buffer, capacity_for, grow_buffers
from gptx.ort.check_graph import EMBEDS, HIDDEN_AT
from gptx.ort.graph import OnnxGraph
from gptx.system.inside_library import inside_library

GROUP = 16  # positions of keys that lie together in a buffer; its capacity is a multiple


class NativeCache:
    """One buffer (B, G, capacity, D) for the keys of each layer, and one for its values.

    The graph writes new tokens into the buffers in place. Within a head, keys are stored in groups
    of 16 positions, (capacity / 16, D, 16). Keys and values of 8 bits have buffers (B, G, capacity)
    of scales.

    A token's logits do not depend on the other tokens of a run, so rows run together or apart.
    """

    def __init__(self, graph: OnnxGraph, batch_size: int, *, limit: int, size: int | None) -> None:
        model = graph.manifest.model
        self._graph, self._limit = graph, limit
        self._binding = graph.session.io_binding()
        self._names = list(zip(graph.past_names, graph.present_names))
        self.logits = np.zeros((batch_size, 1, model.n_logits), np.float32)
        self._starts = np.zeros(batch_size, np.int64)
        self._bound: list[int] = []  # the rows whose decode steps are bound; [] if others are
        if graph.n_embd is not None:
            self._unused = np.zeros((0, graph.n_embd), np.float32), np.zeros(0, np.int64)
            for name, array in zip((EMBEDS, HIDDEN_AT), self._unused):
                self._binding.bind_cpu_input(name, array)
        self.capacity = 0
        self._buffers: list[Buffer] = []
        self._reserve(size or 1, 0)

    def decode(self, tokens: Sequence[int | None], lengths: Sequence[int]) -> None:
        """Run the rows that have a token in one run. Their logits are then in `logits[row, 0]`."""
        new = {row: token for row, token in enumerate(tokens) if token is not None}
        if len(new) > self._graph.manifest.prefill_chunk:
            ids = {row: np.array([token], np.int64) for row, token in new.items()}
            return self.prefill(ids, lengths)
        self._decode(new, lengths)

    def _decode(self, new: Mapping[int, int], lengths: Sequence[int]) -> None:
        rows = sorted(new)
        self._reserve(max(lengths[row] for row in rows) + 1, max(lengths))
        if self._bound != rows:
            self._bind_step(rows)
        self._step_ids[:] = [new[row] for row in rows]
        self._step_places[:] = [lengths[row] for row in rows]
        self._run()
        if self._step_logits is not None:
            self.logits[rows, 0] = self._step_logits

    def run(self, feeds: Sequence[Feed], lengths: Sequence[int]) -> list[np.ndarray]:
        """Run the tokens of all feeds in one run; the logits that each of them wants, (n, V)."""
        if all(len(feed.ids) == 1 == feed.wanted for feed in feeds):
            self._decode({feed.row: feed.ids[0] for feed in feeds}, lengths)
            return [self.logits[feed.row] for feed in feeds]
        counts = [len(feed.ids) for feed in feeds]
        self._reserve(max(lengths[feed.row] + len(feed.ids) for feed in feeds), max(lengths))
        self._bound = []
        ends = np.cumsum(counts)
        wanted = [np.arange(end - feed.wanted, end) for feed, end in zip(feeds, ends)]
        logits = np.empty((sum(map(len, wanted)), self.logits.shape[2]), np.float32)
        self._run_tokens(
            np.concatenate([np.asarray(feed.ids, np.int64) for feed in feeds]),
            np.repeat([feed.row for feed in feeds], counts),
            np.concatenate([lengths[feed.row] + np.arange(len(feed.ids)) for feed in feeds]),
            np.concatenate(wanted),
            logits,
        )
        return np.split(logits, np.cumsum([feed.wanted for feed in feeds])[:-1])

    def prefill(
        self,
        new: Mapping[int, np.ndarray],
        lengths: Sequence[int],
        outs: Mapping[int, np.ndarray] | None = None,
    ) -> None:
        """Run the new tokens of some rows, at most prefill_chunk tokens at a time.

        The logits after a row's last token are then in `logits[row, 0]`. With `outs`, the logits
        after each of the n new tokens are written to outs[row] (n, V) instead.
        """
        self._reserve(max(lengths[row] + len(ids) for row, ids in new.items()), max(lengths))
        self._bound = []
        if outs is not None:
            self._run_with_logits(new, lengths, outs)
            return
        ids = np.concatenate(list(new.values()))
        counts = [len(one) for one in new.values()]
        rows = np.repeat(np.fromiter(new, np.int64), counts)
        places = np.concatenate([lengths[row] + np.arange(n) for row, n in zip(new, counts)])
        ends = np.cumsum(counts)
        size = self._graph.manifest.prefill_chunk
        for start in range(0, len(ids), size):
            part = slice(start, start + size)
            wanted = ends[(ends > start) & (ends <= start + size)] - 1
            logits = np.empty((len(wanted), self.logits.shape[2]), np.float32)
            self._run_tokens(ids[part], rows[part], places[part], wanted - start, logits)
            self.logits[rows[wanted], 0] = logits

    def _run_with_logits(
        self,
        new: Mapping[int, np.ndarray],
        lengths: Sequence[int],
        outs: Mapping[int, np.ndarray],
    ) -> None:
        """Run one row after the other; the graph writes all logits to `outs`, without a copy."""
        for row, ids in new.items():
            for start, chunk in self._graph.chunks(ids):
                count = np.arange(len(chunk))
                places = lengths[row] + start + count
                out = outs[row][start : start + len(chunk)]
                self._run_tokens(chunk, np.full(len(chunk), row), places, count, out)

    def rewind(self, lengths: Sequence[int]) -> None:
        """Nothing to do: a query sees the positions up to its own, whatever lies behind them."""

    def skip(self, n: int) -> None:
        """Let the tokens of the first row see no position below `n`."""
        self._reserve(n, 0)
        self._starts[0] = n

    def _reserve(self, length: int, used: int) -> None:
        """Make room for `length` tokens a row, keeping the first `used` of each row."""
        if length <= self.capacity:
            return
        batch_size = len(self.logits)
        check_memory(self._graph, batch_size, length)
        self._bound = []  # the new buffers must be bound
        capacity = capacity_for(length, self._limit)
        before, after = _groups(self.capacity), _groups(capacity)
        used = min(_groups(used), before)
        sizes = (batch_size, before), (batch_size, after)
        grow_buffers(self._graph, self._buffers, sizes, used)
        self.capacity = capacity

    def add_rows(self, batch_size: int, used: int) -> None:
        """Make the rows `batch_size`, keeping the first `used` tokens of each."""
        check_memory(self._graph, batch_size, self.capacity)
        self._bound = []
        places = _groups(self.capacity)
        sizes = (len(self.logits), places), (batch_size, places)
        grow_buffers(self._graph, self._buffers, sizes, min(_groups(used), places))
        self.logits = np.zeros((batch_size, *self.logits.shape[1:]), np.float32)
        self._starts = np.zeros(batch_size, np.int64)

    def read(self, row: int, start: int, end: int) -> list[np.ndarray]:
        """Copies of a row's keys and values at the positions `start` to before `end`.

        start: a multiple of GROUP. The copies end with a whole group; what lies behind `end` is
        never read.
        """
        return [buffer.read(row, start, _groups(end)) for buffer in self._buffers]

    def write(self, row: int, n: int, parts: Sequence[np.ndarray]) -> None:
        """Make `parts` the keys and values of the first `n` positions of a row."""
        self._reserve(n, self.capacity)
        for buffer, part in zip(self._buffers, parts):
            buffer.write(row, part[:, : _groups(n)])

    def _bind_step(self, rows: list[int]) -> None:
        """Bind the inputs of decode steps of some rows, whose arrays then change in place.

        The logits of neighbouring rows go to `logits`, those of others to an array of their own.
        """
        self._bound = []
        self._step_ids, self._step_places = np.zeros((2, len(rows)), np.int64)
        at = np.arange(len(rows), dtype=np.int64)
        self._bind(self._step_ids, np.array(rows, np.int64), self._step_places, at)
        places = self.logits[rows[0] : rows[-1] + 1, 0]
        apart = len(places) > len(rows)
        self._step_logits = np.empty((len(rows), places.shape[1]), np.float32) if apart else None
        self._bind_logits(places if self._step_logits is None else self._step_logits)
        self._bound = rows

    def _run_tokens(
        self,
        ids: np.ndarray,
        rows: np.ndarray,
        places: np.ndarray,
        wanted: np.ndarray,
        logits: np.ndarray,
    ) -> None:
        """Run tokens (T,); write the logits of the L tokens `wanted` to `logits` (L, V)."""
        self._bind(ids, rows, places, wanted)
        self._bind_logits(logits)
        self._run()

    def _bind(self, *arrays: np.ndarray) -> None:
        names = ("input_ids", "row_ids", "position_ids", "logits_at", "row_starts")
        self._inputs = [np.ascontiguousarray(array) for array in (*arrays, self._starts)]
        for name, array in zip(names, self._inputs):
            self._binding.bind_cpu_input(name, array)
        for (past, present), buffer in zip(self._names, self._buffers):
            pointer, shape = buffer.rows(0, len(self.logits))
            self._binding.bind_input(past, "cpu", 0, buffer.dtype.type, shape, pointer)
            self._binding.bind_output(present, "cpu", 0, buffer.dtype.type, shape, pointer)

    def _bind_logits(self, array: np.ndarray) -> None:
        self._binding.bind_output("logits", "cpu", 0, np.float32, array.shape, array.ctypes.data)

    def _run(self) -> None:
        with inside_library:
            try:
                self._graph.session.run_with_iobinding(self._binding, None)
            except Exception as error:
                raise self._graph.run_error(error) from error


def _groups(length: int) -> int:
    """`length` rounded up to whole groups of keys."""
    return -(-length // GROUP) * GROUP
