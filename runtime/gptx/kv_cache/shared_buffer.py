"""The KV cache of graphs that write into a buffer (cache forms shared and scatter), on the CPU.

open.py explains the methods. B: rows, G: key-value heads, D: head size, V: logits of one token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from gptx.kv_cache.memory_limit import check_memory, no_memory
from gptx.ort.binding import Binding
from gptx.ort.graph import OnnxGraph

SMALLEST = 128  # tokens of the first buffer
MASK_AHEAD = (
    64  # columns of the mask beyond the longest row; each takes a little time in every layer
)


def capacity_for(length: int, limit: int) -> int:
    """The capacity for `length` tokens: the next power of two, from SMALLEST up to `limit`."""
    return min(max(SMALLEST, 1 << (length - 1).bit_length()), limit)


class SharedBufferCache:
    """One buffer (B, G, capacity, D) for the keys of each layer, and one for its values.

    Each buffer is bound as input (past) and as output (present): the graph writes new tokens into
    the buffer in place.

    A decode step changes three small inputs in place (ids, positions, mask) and runs the graph. The
    mask is bound with spare columns, so that it need not be bound anew for each token. The graph
    takes a row's length from the last 1 in the row's mask.

    A step makes as few Python calls as possible. After a run the processor's caches hold only
    weights, so a Python call that takes 1 us in a loop takes 40 us here.
    """

    def __init__(self, graph: OnnxGraph, batch_size: int, *, limit: int, size: int | None) -> None:
        model = graph.manifest.model
        self._graph, self._limit = graph, limit
        self._main = Binding(graph, graph.session)
        # For decode steps of a single row.
        self._single = Binding(graph, graph.decode) if graph.decode else self._main
        # The rows (first, last) that are bound for the next decode step; None: bind anew.
        self._bound: tuple[int, int] | None = None
        self._mask = np.zeros((1, 0), np.int64)  # of the bound rows: (last - first, columns)
        self._ids = np.zeros((batch_size, 1), np.int64)
        self._positions = np.zeros((batch_size, 1), np.int64)
        self.logits = np.zeros((batch_size, 1, model.n_logits), graph.logits_dtype)
        self.capacity = 0
        self._buffers: list[Buffer] = []
        self._reserve(size or 1, 0)

    def decode(self, tokens: Sequence[int | None], lengths: Sequence[int]) -> None:
        """Run the rows that have a token in one run. Their logits are then in `logits[row, 0]`.

        Idle rows (None) between them run too, with token 0. Token 0 is written behind the row's own
        tokens, and the row's next token overwrites it. Idle rows at either end are left out.
        """
        first, last = active_rows(tokens)
        if last - first == 1:
            position = lengths[first]
            if (first, last) != self._bound or position >= self._mask.shape[1]:
                self._bind_decode(first, last, position + 1, lengths)
            self._ids[first, 0] = tokens[first] or 0
            self._positions[first, 0] = position
            self._mask[0, position] = 1
        else:
            self._set_several(first, last, tokens, lengths)
        self._binding(first, last).run()

    def _set_several(
        self, first: int, last: int, tokens: Sequence[int | None], lengths: Sequence[int]
    ) -> None:
        """Write the inputs of a decode step of the rows from `first` to before `last`."""
        # A full row is always idle: token 0 overwrites its last place, which is never read again.
        positions = np.minimum(lengths[first:last], self._limit - 1)
        length = int(positions.max()) + 1
        if (first, last) != self._bound or length > self._mask.shape[1]:
            self._bind_decode(first, last, length, lengths)
        self._ids[first:last, 0] = [token or 0 for token in tokens[first:last]]
        self._positions[first:last, 0] = positions
        self._mask[np.arange(last - first), positions] = 1

    def prefill(
        self,
        new: Mapping[int, np.ndarray],
        lengths: Sequence[int],
        outs: Mapping[int, np.ndarray] | None = None,
    ) -> None:
        """Run the new tokens of one row after the other, in chunks of the artifact's prefill_chunk.

        The logits after a row's last token are then in `logits[row, 0]`. With `outs`, the logits
        after each of the n new tokens are written to outs[row] (n, V) instead.
        """
        self._reserve(max(lengths[row] + len(ids) for row, ids in new.items()), max(lengths))
        self._bound = None
        for row, ids in new.items():
            self._main.bind_cache([buffer.rows(row, row + 1) for buffer in self._buffers])
            out = outs[row] if outs else None
            for start, chunk in self._graph.chunks(ids):
                self._prefill_chunk(
                    row, chunk, lengths[row] + start, None if out is None else out[start:]
                )

    def _prefill_chunk(
        self, row: int, chunk: np.ndarray, past: int, out: np.ndarray | None
    ) -> None:
        """Run a row's `chunk` of tokens (n,) behind its `past` tokens."""
        total, size = past + len(chunk), len(chunk)
        self._main.bind_ids(chunk[None], np.arange(past, total)[None], 1 if out is None else 0)
        self._main.bind_mask(self._prefill_mask[:, :total])
        logits = self.logits[row : row + 1]
        if out is not None or not self._graph.logits_input:
            logits = np.empty((1, size, logits.shape[2]), logits.dtype)
        self._main.bind_logits(logits)
        self._main.run()
        if out is not None:
            out[:size] = logits[0]
        else:
            self.logits[row, 0] = logits[0, -1]

    def rewind(self, lengths: Sequence[int]) -> None:
        """Only the bound mask changes: nothing behind a row's length is ever read."""
        if self._bound:
            self._mask[...] = self._mask_of(lengths[slice(*self._bound)], self._mask.shape[1])

    def skip(self, n: int) -> None:
        """Leave the first `n` places of the buffers empty, and mask them in `prefill`."""
        self._reserve(n, 0)
        self._prefill_mask[:, :n] = 0

    def _reserve(self, length: int, used: int) -> None:
        """Make room for `length` tokens a row, keeping the first `used` of each row."""
        if length <= self.capacity:
            return
        batch_size = len(self._ids)
        check_memory(self._graph, batch_size, length)
        self._bound = None  # the new buffers must be bound
        capacity = capacity_for(length, self._limit)
        sizes = (batch_size, self.capacity), (batch_size, capacity)
        grow_buffers(self._graph, self._buffers, sizes, used)
        self._prefill_mask = np.ones((1, capacity), np.int64)
        self.capacity = capacity

    def add_rows(self, batch_size: int, used: int) -> None:
        """Make the rows `batch_size`, keeping the first `used` tokens of each."""
        check_memory(self._graph, batch_size, self.capacity)
        self._bound = None
        sizes = (len(self._ids), self.capacity), (batch_size, self.capacity)
        grow_buffers(self._graph, self._buffers, sizes, used)
        self._ids, self._positions = np.zeros((2, batch_size, 1), np.int64)
        self.logits = np.zeros((batch_size, *self.logits.shape[1:]), self.logits.dtype)

    def read(self, row: int, start: int, end: int) -> list[np.ndarray]:
        """Copies of a row's keys and values at the positions `start` to before `end`."""
        return [buffer.read(row, start, end) for buffer in self._buffers]

    def write(self, row: int, n: int, parts: Sequence[np.ndarray]) -> None:
        """Make `parts` the keys and values of the first `n` positions of a row."""
        self._reserve(n, self.capacity)
        self._bound = None  # the bound mask lacks these positions
        for buffer, part in zip(self._buffers, parts):
            buffer.write(row, part[:, :n])

    def _bind_decode(self, first: int, last: int, length: int, lengths: Sequence[int]) -> None:
        """Bind the rows from `first` to before `last` for decode steps.

        length: tokens of the longest of these rows after the step. The mask gets MASK_AHEAD columns
        more, so that the next steps need not bind again.
        """
        self._reserve(length, max(lengths))
        # None until everything is bound: KeyboardInterrupt may stop the binding half-way.
        bound, self._bound = self._bound, None
        self._mask = self._mask_of(lengths[first:last], min(length + MASK_AHEAD, self.capacity))
        binding = self._binding(first, last)
        binding.bind_mask(self._mask)
        if bound != (first, last):
            binding.bind_cache([buffer.rows(first, last) for buffer in self._buffers])
            binding.bind_ids(self._ids[first:last], self._positions[first:last], 1)
            binding.bind_logits(self.logits[first:last])
        self._bound = (first, last)

    def _binding(self, first: int, last: int) -> Binding:
        """The binding for decode steps of the rows from `first` to before `last`."""
        return self._single if last - first == 1 else self._main

    def _mask_of(self, lengths: Sequence[int], width: int) -> np.ndarray:
        """(rows, width): 1 for the first lengths[row] tokens of each row, then 0."""
        return (np.arange(width) < np.array(lengths)[:, None]).astype(np.int64)


def active_rows(tokens: Sequence[int | None]) -> tuple[int, int]:
    """The first row that has a token, and one past the last such row."""
    first, last = 0, len(tokens)
    while tokens[first] is None:
        first += 1
    while tokens[last - 1] is None:
        last -= 1
    return first, last


class Buffer:
    """An array (B, G, capacity, ...) whose rows can be bound by pointer.

    Unused places hold zeros, not NaN: attention multiplies masked values by 0.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self._array = np.zeros(shape, dtype)

    @property
    def dtype(self) -> np.dtype:
        return self._array.dtype

    def rows(self, first: int, last: int) -> tuple[int, tuple[int, ...]]:
        """Pointer and shape of the rows from `first` to before `last`."""
        array = self._array[first:last]
        return array.ctypes.data, array.shape

    def read(self, row: int, start: int, end: int) -> np.ndarray:
        """A copy of a row's entries `start` to before `end`: (G, n, ...)."""
        return self._array[row, :, start:end].copy()

    def write(self, row: int, entries: np.ndarray) -> None:
        """Make `entries` (G, n, ...) the first of a row."""
        self._array[row, :, : entries.shape[1]] = entries

    def grow(self, shape: tuple[int, ...], used: int) -> None:
        """Add rows or capacity, keeping the first `used` tokens of a row. Raises MemoryError."""
        if shape == self._array.shape:
            return
        new = np.zeros(shape, self._array.dtype)
        new[: len(self._array), :, :used] = self._array[:, :, :used]
        self._array = new

    def shrink(self, shape: tuple[int, ...], used: int) -> None:
        """Undo `grow`, after another buffer could not grow.

        Needs no new memory: every row's tokens are moved towards the start of the larger array.
        """
        if shape == self._array.shape:
            return
        small = self._array.reshape(-1)[: math.prod(shape)].reshape(shape)
        # In the order of memory: no row is overwritten before it was moved.
        for row_and_head in np.ndindex(*shape[:2]):
            small[row_and_head][:used] = self._array[row_and_head][:used]
        self._array = small


def grow_buffers(
    graph: OnnxGraph,
    buffers: list[Buffer],
    sizes: tuple[tuple[int, int], tuple[int, int]],
    used: int,
) -> None:
    """Change the size of the buffers of all layers. sizes: rows and capacity, before and after.

    The first `used` tokens of every row are kept. `buffers` is empty before the first call. If
    memory is missing or Ctrl-C is pressed, all buffers have the old size again. Raises GptxError if
    memory is missing.
    """
    model = graph.manifest.model
    parts = graph.cache_parts * model.n_layer
    before, after = (
        [(rows, model.n_kv_head, capacity, *part.shape) for part in parts]
        for rows, capacity in sizes
    )
    try:
        for part, shape in list(zip(parts, after))[len(buffers) :]:
            buffers.append(Buffer(shape, part.dtype))
        for buffer, shape in zip(buffers, after):
            buffer.grow(shape, used)
    except BaseException as error:  # no memory, or Ctrl-C
        for buffer, shape in zip(buffers, before):
            buffer.shrink(shape, used)
        if isinstance(error, MemoryError):
            raise no_memory(graph, *sizes[1]) from error
        raise
