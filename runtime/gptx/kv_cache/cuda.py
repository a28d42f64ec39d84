"""The KV cache of graphs that write into a buffer (cache forms shared and scatter), on CUDA.

open.py explains the methods. B: rows, G: key-value heads, D: head size, V: logits of one token.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from gptx.errors import GptxError
from gptx.kv_cache.memory_limit import cache_bytes
from gptx.kv_cache.shared_buffer import capacity_for
from gptx.ort.binding import Binding
from gptx.ort.cuda import NOT_CAPTURED, is_full, run_options
from gptx.ort.graph import OnnxGraph
from gptx.ort.library import onnxruntime


class CudaCache:
    """The cache of a session on CUDA. All rows take part in every decode step.

    An idle row runs with token 0. Token 0 is written behind the row's own tokens, and the next
    token of the row overwrites it. A full row is always idle: there, token 0 overwrites the last
    place.
    """

    def __init__(self, graph: OnnxGraph, batch_size: int, *, limit: int, size: int | None) -> None:
        self._graph, self._limit = graph, limit
        self._buffers: CacheBuffers | None = None
        self._prefill_options = run_options(NOT_CAPTURED) if graph.captures else None
        self.logits = np.zeros((batch_size, 1, graph.manifest.model.n_logits), graph.logits_dtype)
        with self._locked():
            self._reserve(size or 1, 0)

    def __del__(self) -> None:
        with self._graph.device_lock:
            if self._buffers is not None:
                self._graph.buffer_pool.give(self._buffers)
            self._buffers = None

    @property
    def capacity(self) -> int:
        """Tokens that each row has room for at the moment."""
        return self._buffers.shape[1] if self._buffers else 0

    def decode(self, tokens: Sequence[int | None], lengths: Sequence[int]) -> None:
        """Run all rows in one run. The logits are then in `logits[row, 0]`."""
        positions = np.minimum(lengths, self._limit - 1).astype(np.int64)[:, None]
        with self._locked():
            buffers = self._reserve(int(positions.max()) + 1, max(lengths))
            buffers.ids.update_inplace(np.array([[token or 0] for token in tokens], np.int64))
            buffers.positions.update_inplace(positions)
            # A graph that can be captured uses only the shape of the mask. It takes the length of a
            # row from the position of the row's new token.
            if not self._graph.captures:
                mask = np.arange(self.capacity) <= positions
                buffers.mask.update_inplace(mask.astype(np.int64))
            buffers.decode.run(buffers.options)
            np.copyto(self.logits, buffers.logits.numpy())

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
        with self._locked():
            longest = max(lengths[row] + len(ids) for row, ids in new.items())
            buffers = self._reserve(longest, max(lengths))
            for row, ids in new.items():
                binding = Binding(self._graph, self._graph.session)
                binding.bind_cache(buffers.rows(row, row + 1))
                for start, chunk in self._graph.chunks(ids):
                    logits = self._prefill_chunk(
                        binding, chunk, lengths[row] + start, every=outs is not None
                    )
                    if outs is not None:
                        outs[row][start : start + len(chunk)] = logits
                    else:
                        self.logits[row, 0] = logits[-1]

    def _prefill_chunk(
        self, binding: Binding, chunk: np.ndarray, past: int, *, every: bool
    ) -> np.ndarray:
        """Run a `chunk` of tokens (n,) behind `past` tokens. Returns logits (n, V) or (1, V).

        every: return the logits of all n tokens. Otherwise only the last token's logits are needed,
        but a graph that cannot leave out the others returns all.
        """
        total = past + len(chunk)
        binding.bind_ids(chunk[None], np.arange(past, total)[None], 0 if every else 1)
        binding.bind_mask(np.ones((1, total), np.int64))
        n_logits = len(chunk) if every or not self._graph.logits_input else 1
        logits = np.empty((1, n_logits, self.logits.shape[2]), self.logits.dtype)
        binding.bind_logits(logits)
        binding.run(self._prefill_options)
        return logits[0]

    def rewind(self, lengths: Sequence[int]) -> None:
        """Nothing to do: nothing behind a row's length is ever read."""

    def add_rows(self, batch_size: int, used: int) -> None:
        """Make the rows `batch_size`, keeping the first `used` tokens of each."""
        with self._locked():
            before = self._buffers
            assert before is not None
            buffers = self._new_buffers((batch_size, self.capacity))
            buffers.copy(before, used)
            self._buffers = buffers
            self.logits = np.zeros((batch_size, *self.logits.shape[1:]), self.logits.dtype)
            self._graph.buffer_pool.give(before)

    def read(self, row: int, start: int, end: int) -> list[np.ndarray]:
        """Copies of a row's keys and values at the positions `start` to before `end`."""
        with self._locked():
            assert self._buffers is not None
            return [part.numpy()[row, :, start:end] for part in self._buffers.keys_values]

    def write(self, row: int, n: int, parts: Sequence[np.ndarray]) -> None:
        """Make `parts` the keys and values of the first `n` positions of a row."""
        with self._locked():
            buffers = self._reserve(n, self.capacity)
            for value, part in zip(buffers.keys_values, parts):
                array = value.numpy()
                array[row, :, :n] = part[:, :n]
                value.update_inplace(array)

    def _reserve(self, length: int, used: int) -> CacheBuffers:
        """Buffers with room for `length` tokens a row, which keep the first `used` of each row."""
        if self._buffers and length <= self.capacity:
            return self._buffers
        buffers = self._new_buffers((len(self.logits), capacity_for(length, self._limit)))
        if self._buffers:
            buffers.copy(self._buffers, used)
        before, self._buffers = self._buffers, buffers
        if before:  # copied by now: another session may use these buffers from here on
            self._graph.buffer_pool.give(before)
        return buffers

    def _new_buffers(self, shape: tuple[int, int]) -> CacheBuffers:
        """Buffers from the pool, or new ones. If the device is full, the pool is emptied first."""
        graph = self._graph
        while True:
            try:
                return graph.buffer_pool.take(shape) or CacheBuffers.allocate(graph, shape)
            except Exception as error:
                if not is_full(error):
                    raise
                if not graph.buffer_pool.clear():
                    raise _device_full(graph, shape) from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the device lock, and turn ONNX Runtime's errors into an ArtifactError."""
        with self._graph.device_lock:
            try:
                yield
            except GptxError:
                raise
            except Exception as error:
                raise self._graph.run_error(error) from error


def _device_full(graph: OnnxGraph, shape: tuple[int, int]) -> GptxError:
    rows, capacity = shape
    return GptxError(
        f"the device has no memory for the cache: {rows} rows of {capacity} tokens take "
        f"{cache_bytes(graph, *shape) / 1e9:.1f} GB; run fewer rows at once"
    )


@dataclass(frozen=True)
class CacheBuffers:
    """The memory of one session on the device, as OrtValues.

    Each layer has a buffer (B, G, capacity, D) for its keys and one for its values. Each buffer is
    bound as past and as present of the graph. The inputs and logits of a decode step stay at the
    same addresses too. So the first step can be captured as a CUDA graph, which each further step
    replays.
    """

    graph: OnnxGraph
    shape: tuple[int, int]  # rows, capacity
    keys_values: list[Any]  # each layer's keys, then its values
    ids: Any  # (B, 1) int64
    positions: Any  # (B, 1) int64
    mask: Any  # (B, capacity) int64
    logits: Any  # (B, 1, V)
    decode: Binding  # all of the above, for decode steps
    graph_id: int  # the CUDA graph's id; NOT_CAPTURED if the session does not capture
    options: Any  # RunOptions of decode steps

    @classmethod
    def allocate(cls, graph: OnnxGraph, shape: tuple[int, int]) -> CacheBuffers:
        """New buffers on the graph's device. Raises ONNX Runtime's error if the device is full."""
        (rows, capacity), model = shape, graph.manifest.model
        cache = (rows, model.n_kv_head, capacity, model.head_dim)
        # Zeros, not NaN: attention multiplies masked values by 0.
        zeros = np.zeros(cache, graph.cache_dtype)
        keys_values = [_placed(zeros, graph.device) for _ in range(2 * model.n_layer)]
        ids, positions = (_placed(np.zeros((rows, 1), np.int64), graph.device) for _ in range(2))
        mask = _placed(np.ones((rows, capacity), np.int64), graph.device)
        logits = _placed(np.zeros((rows, 1, model.n_logits), graph.logits_dtype), graph.device)
        graph_id = next(graph.graph_ids) if graph.captures else NOT_CAPTURED
        options = run_options(graph_id) if graph.captures else None
        decode = Binding(graph, graph.session)
        buffers = cls(
            graph, shape, keys_values, ids, positions, mask, logits, decode, graph_id, options
        )
        decode.bind_cache(buffers.rows(0, rows))
        decode.bind_on_device(ids, positions, mask, logits)
        return buffers

    @property
    def size(self) -> int:
        """Bytes of the keys and values."""
        return cache_bytes(self.graph, *self.shape)

    def rows(self, first: int, last: int) -> list[tuple[int, tuple[int, ...]]]:
        """Pointer and shape of the rows from `first` to before `last`, in each buffer."""
        rows, *rest = self.keys_values[0].shape()
        row_bytes = math.prod(rest) * self.graph.cache_dtype.itemsize
        return [
            (buffer.data_ptr() + first * row_bytes, (last - first, *rest))
            for buffer in self.keys_values
        ]

    def copy(self, other: CacheBuffers, used: int) -> None:
        """Copy the first `used` tokens of each row of other buffers, which have no more rows."""
        for mine, its in zip(self.keys_values, other.keys_values):
            array = np.zeros(mine.shape(), self.graph.cache_dtype)
            array[: other.shape[0], :, :used] = its.numpy()[:, :, :used]
            mine.update_inplace(array)

    def release(self) -> None:
        """Free the CUDA graph that was captured with these buffers."""
        if self.graph_id != NOT_CAPTURED:
            self.graph.session.release_captured_graph(self.graph_id)


def _placed(array: np.ndarray, device: str) -> Any:
    """A copy of the array on a device, as an OrtValue."""
    value = onnxruntime().OrtValue.ortvalue_from_shape_and_type(
        array.shape, array.dtype.type, device, 0
    )
    value.update_inplace(array)
    return value
