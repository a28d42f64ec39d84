"""The cache of graphs that write into a buffer (forms shared and scatter), on the CPU. Its verbs: see open.py."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from gptx.kv_cache.memory_limit import check_memory, no_memory
from gptx.ort.binding import Binding
from gptx.ort.graph import OnnxGraph

SMALLEST = 128  # tokens that a buffer holds at first
MASK_AHEAD = 64  # places of the mask beyond what is held; each costs a little in every layer


def capacity_for(length: int, limit: int) -> int:
    """The buffer that holds `length` tokens: the next power of two, at least SMALLEST, at most `limit`."""
    return min(max(SMALLEST, 1 << (length - 1).bit_length()), limit)


class SharedBufferCache:
    """One buffer (B, G, capacity, D) for each layer's keys and each layer's values,
    bound as past and as present, so that a step copies nothing. A step changes the three small inputs in place: the
    mask is bound somewhat longer than what is held, and ends at its last 1. (After each step the weights have pushed
    all else out of the processor's caches: a call that takes 1 us in a loop takes 40 us here, so a step makes few.)"""

    def __init__(self, graph: OnnxGraph, batch_size: int, *, limit: int, size: int | None) -> None:
        model = graph.manifest.model
        self._graph, self._limit = graph, limit
        self._main = Binding(graph, graph.session)
        self._single = (
            Binding(graph, graph.decode) if graph.decode else self._main
        )  # for steps of a single row
        self._bound: tuple[int, int] | None = (
            None  # the rows that the next step finds bound, a single one in _single
        )
        self._mask = np.zeros((1, 0), np.int64)  # theirs
        self._ids = np.zeros((batch_size, 1), np.int64)
        self._positions = np.zeros((batch_size, 1), np.int64)
        self.logits = np.zeros((batch_size, 1, model.n_logits), graph.logits_dtype)
        self.capacity = 0
        self._buffers: list[Buffer] = []
        self._reserve(size or 1, 0)

    def decode(self, tokens: Sequence[int | None], lengths: Sequence[int]) -> None:
        """Run the rows that have a token together; their logits are in `logits[row, 0]`.

        Rows between them that have none (None) run too, on a token that is not kept: it is written behind what they
        hold, where the next real one overwrites it. Idle rows at either end are left out.
        """
        first, last = busy(tokens)
        binding = self._binding(first, last)
        if last - first == 1:
            position = lengths[first]
            if (first, last) != self._bound or position >= self._mask.shape[1]:
                self._bind_decode(first, last, position + 1, lengths)
            self._ids[first, 0] = tokens[first] or 0
            self._positions[first, 0] = position
            self._mask[0, position] = 1
        else:
            # a full row can only be idle: its last place is overwritten, and read no more
            positions = np.minimum(lengths[first:last], self._limit - 1)
            length = int(positions.max()) + 1
            if (first, last) != self._bound or length > self._mask.shape[1]:
                self._bind_decode(first, last, length, lengths)
            self._ids[first:last, 0] = [token or 0 for token in tokens[first:last]]
            self._positions[first:last, 0] = positions
            self._mask[np.arange(last - first), positions] = 1
        binding.run()

    def prefill(
        self,
        new: Mapping[int, np.ndarray],
        lengths: Sequence[int],
        outs: Mapping[int, np.ndarray] | None = None,
    ) -> None:
        """Run the new tokens of one row after the other, in pieces of the artifact's prefill_chunk. A row's last logits
        are in `logits[row, 0]`, or with `outs` those of all its tokens in outs[row] (n, V)."""
        self._reserve(max(lengths[row] + len(ids) for row, ids in new.items()), max(lengths))
        self._bound = None
        for row, ids in new.items():
            self._main.rows([buffer.rows(row, row + 1) for buffer in self._buffers])
            out = outs[row] if outs else None
            for start, piece in self._graph.pieces(ids):
                self._prefill_chunk(
                    row, piece, lengths[row] + start, None if out is None else out[start:]
                )

    def _prefill_chunk(
        self, row: int, piece: np.ndarray, past: int, out: np.ndarray | None
    ) -> None:
        total, size = past + len(piece), len(piece)
        self._main.small(piece[None], np.arange(past, total)[None], 1 if out is None else 0)
        self._main.mask(self._ones[:, :total])
        logits = self.logits[row : row + 1]
        if out is not None or not self._graph.logits_input:
            logits = np.empty((1, size, logits.shape[2]), logits.dtype)
        self._main.logits(logits)
        self._main.run()
        if out is not None:
            out[:size] = logits[0]
        else:
            self.logits[row, 0] = logits[0, -1]

    def rewind(self, lengths: Sequence[int]) -> None:
        """Only the mask must say so: what lies behind a row's length is then never read."""
        if self._bound:
            self._mask[...] = self._mask_of(lengths[slice(*self._bound)], self._mask.shape[1])

    def skip(self, places: int) -> None:
        """Leave the first places empty and hide them from what `fill` runs."""
        self._reserve(places, 0)
        self._ones[:, :places] = 0

    def _reserve(self, length: int, used: int) -> None:
        """Make room for `length` tokens a row, keeping the first `used`."""
        if length <= self.capacity:
            return
        model, batch_size = self._graph.manifest.model, len(self._ids)
        check_memory(self._graph, batch_size, length)
        self._bound = None  # the arrays are others then
        capacity = capacity_for(length, self._limit)
        before, shape = (
            (batch_size, model.n_kv_head, size, model.head_dim)
            for size in (self.capacity, capacity)
        )
        try:
            while len(self._buffers) < 2 * model.n_layer:
                self._buffers.append(Buffer(shape, self._graph.cache_dtype))
            for buffer in self._buffers:
                buffer.grow(shape, used)
        except MemoryError as error:
            for buffer in self._buffers:
                buffer.shrink(before, used)
            raise no_memory(self._graph, batch_size, capacity) from error
        self.capacity = capacity
        self._ones = np.ones((1, self.capacity), np.int64)

    def _bind_decode(self, first: int, last: int, length: int, lengths: Sequence[int]) -> None:
        """Bind rows first..last for steps until one holds more than `length` tokens, and some further ones."""
        self._reserve(length, max(lengths))
        known, self._bound = self._bound, None  # until all is bound: this may be interrupted
        self._mask = self._mask_of(lengths[first:last], min(length + MASK_AHEAD, self.capacity))
        binding = self._binding(first, last)
        binding.mask(self._mask)
        if known == (first, last):
            self._bound = known
            return
        binding.rows([buffer.rows(first, last) for buffer in self._buffers])
        binding.small(self._ids[first:last], self._positions[first:last], 1)
        binding.logits(self.logits[first:last])
        self._bound = (first, last)

    def _binding(self, first: int, last: int) -> Binding:
        """What steps of rows first..last run in."""
        return self._single if last - first == 1 else self._main

    def _mask_of(self, lengths: Sequence[int], width: int) -> np.ndarray:
        return (np.arange(width) < np.array(lengths)[:, None]).astype(np.int64)


def busy(tokens: Sequence[int | None]) -> tuple[int, int]:
    """The rows from the first to the last that have a token."""
    first, last = 0, len(tokens)
    while tokens[first] is None:
        first += 1
    while tokens[last - 1] is None:
        last -= 1
    return first, last


class Buffer:
    """Zeroed memory of which rows can be bound by pointer. Zeros: what is masked is still multiplied."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self._array = np.zeros(shape, dtype)

    def rows(self, first: int, last: int) -> tuple[int, tuple[int, ...]]:
        array = self._array[first:last]
        return array.ctypes.data, array.shape

    def grow(self, shape: tuple[int, ...], used: int) -> None:
        """Take the new shape, keeping the first `used` tokens of every row."""
        if shape == self._array.shape:
            return
        new = np.zeros(shape, self._array.dtype)
        new[:, :, :used] = self._array[:, :, :used]
        self._array = new

    def shrink(self, shape: tuple[int, ...], used: int) -> None:
        """Take the shape from before `grow` again, where other buffers could not grow. It needs no new memory: every
        row moves towards the beginning of the larger array's."""
        if shape == self._array.shape:
            return
        small = self._array.reshape(-1)[: math.prod(shape)].reshape(shape)
        for place in np.ndindex(
            *shape[:2]
        ):  # in order of memory: no row is overwritten before it has moved
            small[place][:used] = self._array[place][:used]
        self._array = small
