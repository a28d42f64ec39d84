"""The cache of graphs that write into a buffer (forms shared and scatter), on CUDA. Its verbs: see open.py."""

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
from gptx.ort.graph import OnnxGraph
from gptx.ort.providers import is_full, onnxruntime, run_options

NEVER = -1  # ONNX Runtime's id of a run that is neither captured nor replayed


class CudaCache:
    """The cache of a session on CUDA. All rows take part in every decode step.

    An idle row gets a token that is not kept: it is written behind the row's own tokens, and the row's next token
    overwrites it. A full row, which can only be idle, has it in its last place.
    """

    def __init__(self, graph: OnnxGraph, batch_size: int, *, limit: int, size: int | None) -> None:
        self._graph, self._limit = graph, limit
        self._buffers: CacheBuffers | None = None
        self._never = run_options(NEVER) if graph.captures else None
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
        return self._buffers.shape[1] if self._buffers else 0

    def decode(self, tokens: Sequence[int | None], lengths: Sequence[int]) -> None:
        """Run all rows; the logits are in `logits[row, 0]`."""
        positions = np.minimum(lengths, self._limit - 1).astype(np.int64)[:, None]
        with self._locked():
            buffers = self._reserve(int(positions.max()) + 1, max(lengths))
            buffers.ids.update_inplace(np.array([[token or 0] for token in tokens], np.int64))
            buffers.positions.update_inplace(positions)
            if (
                not self._graph.captures
            ):  # a graph that can be captured reads the mask's length alone
                buffers.mask.update_inplace(
                    (np.arange(self.capacity) <= positions).astype(np.int64)
                )
            buffers.steps.run(buffers.options)
            np.copyto(self.logits, buffers.logits.numpy())

    def prefill(
        self,
        new: Mapping[int, np.ndarray],
        lengths: Sequence[int],
        outs: Mapping[int, np.ndarray] | None = None,
    ) -> None:
        """Run the new tokens of one row after the other, in pieces of the artifact's prefill_chunk. A row's last logits
        are in `logits[row, 0]`, or with `outs` those of all its tokens in outs[row] (n, V)."""
        with self._locked():
            buffers = self._reserve(
                max(lengths[row] + len(ids) for row, ids in new.items()), max(lengths)
            )
            for row, ids in new.items():
                binding = Binding(self._graph, self._graph.session)
                binding.rows(buffers.places(row, row + 1))
                for start, piece in self._graph.pieces(ids):
                    logits = self._prefill_chunk(
                        binding, piece, lengths[row] + start, every=outs is not None
                    )
                    if outs is not None:
                        outs[row][start : start + len(piece)] = logits
                    else:
                        self.logits[row, 0] = logits[-1]

    def _prefill_chunk(
        self, binding: Binding, piece: np.ndarray, past: int, *, every: bool
    ) -> np.ndarray:
        """(n, V): the logits of all of the piece, or at least the last."""
        total = past + len(piece)
        binding.small(piece[None], np.arange(past, total)[None], 0 if every else 1)
        binding.mask(np.ones((1, total), np.int64))
        kept = len(piece) if every or not self._graph.logits_input else 1
        logits = np.empty((1, kept, self.logits.shape[2]), self.logits.dtype)
        binding.logits(logits)
        binding.run(self._never)
        return logits[0]

    def rewind(self, lengths: Sequence[int]) -> None:
        """Nothing to do: what lies behind a row's length is never read."""

    def _reserve(self, length: int, used: int) -> CacheBuffers:
        """Buffers with room for `length` tokens a row. Larger ones take over the first `used` tokens of each row."""
        if self._buffers and length <= self.capacity:
            return self._buffers
        buffers = self._new_buffers((len(self.logits), capacity_for(length, self._limit)))
        if self._buffers:
            buffers.copy(self._buffers, used)
            self._graph.buffer_pool.give(self._buffers)
        self._buffers = buffers
        return buffers

    def _new_buffers(self, shape: tuple[int, int]) -> CacheBuffers:
        graph = self._graph
        while True:
            try:
                return graph.buffer_pool.take(shape) or CacheBuffers.allocate(graph, shape)
            except Exception as error:
                if not is_full(error):
                    raise
                if not graph.buffer_pool.clear():
                    what = f"{shape[0]} rows of {shape[1]} tokens take {cache_bytes(graph, *shape) / 1e9:.1f} GB"
                    says = f"the device has no memory for the cache: {what}; run fewer rows at once"
                    raise GptxError(says) from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._graph.device_lock:
            try:
                yield
            except GptxError:
                raise
            except Exception as error:  # ONNX Runtime's
                raise self._graph.failed(error) from error


@dataclass(frozen=True)
class CacheBuffers:
    """The memory of one session on the device, as OrtValues.

    Each layer has one buffer (B, G, capacity, D) for its keys and one for its values. It is bound as the past and as the
    present of the graph. The inputs and logits of a decode step have fixed places too: the kernels of a step can then
    be captured once as a CUDA graph, and each further step replays it.
    """

    graph: OnnxGraph
    shape: tuple[int, int]  # rows, capacity
    keys_values: list[Any]  # each layer's keys, then its values
    ids: Any
    positions: Any
    mask: Any
    logits: Any
    steps: Binding
    graph_id: int  # NEVER: of a graph that cannot be captured
    options: Any  # for runs of steps

    @classmethod
    def allocate(cls, graph: OnnxGraph, shape: tuple[int, int]) -> CacheBuffers:
        (rows, capacity), model = shape, graph.manifest.model
        cache = (rows, model.n_kv_head, capacity, model.head_dim)
        zeros = np.zeros(cache, graph.cache_dtype)  # what is masked is still multiplied
        keys_values = [_placed(zeros, graph.device) for _ in range(2 * model.n_layer)]
        ids, positions = (_placed(np.zeros((rows, 1), np.int64), graph.device) for _ in range(2))
        mask = _placed(np.ones((rows, capacity), np.int64), graph.device)
        logits = _placed(np.zeros((rows, 1, model.n_logits), graph.logits_dtype), graph.device)
        graph_id = next(graph.graph_ids) if graph.captures else NEVER
        options = run_options(graph_id) if graph.captures else None
        steps = Binding(graph, graph.session)
        buffers = cls(
            graph, shape, keys_values, ids, positions, mask, logits, steps, graph_id, options
        )
        steps.rows(buffers.places(0, rows))
        steps.stay(ids, positions, mask, logits)
        return buffers

    @property
    def size(self) -> int:
        return cache_bytes(self.graph, *self.shape)

    def places(self, first: int, last: int) -> list[tuple[int, tuple[int, ...]]]:
        """Pointer and shape of the rows from `first` to before `last`, in each buffer."""
        rows, *rest = self.keys_values[0].shape()
        row_bytes = math.prod(rest) * self.graph.cache_dtype.itemsize
        return [
            (buffer.data_ptr() + first * row_bytes, (last - first, *rest))
            for buffer in self.keys_values
        ]

    def copy(self, other: CacheBuffers, used: int) -> None:
        """Copy the first `used` tokens of each row from other buffers with as many rows."""
        for mine, its in zip(self.keys_values, other.keys_values):
            array = np.zeros(mine.shape(), self.graph.cache_dtype)
            array[:, :, :used] = its.numpy()[:, :, :used]
            mine.update_inplace(array)

    def release(self) -> None:
        if self.graph_id != NEVER:
            self.graph.session.release_captured_graph(self.graph_id)


def _placed(array: np.ndarray, device: str) -> Any:
    value = onnxruntime().OrtValue.ortvalue_from_shape_and_type(
        array.shape, array.dtype.type, device, 0
    )
    value.update_inplace(array)
    return value
