"""The cache of graphs that write into a buffer (forms shared and scatter), on CUDA. Its verbs: see cache.py."""

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
from gptx.ort.graph import Engine
from gptx.ort.providers import is_full, onnxruntime, run_options

NEVER = -1  # ONNX Runtime's id of a run that is neither captured nor replayed


class OnDevice:
    """All rows take part in every step, an idle one with a token that is not kept: it is written behind what the row holds,
    where the next real one overwrites it, or in the last place of a full row, which can only be idle."""

    def __init__(self, engine: Engine, batch_size: int, *, limit: int, size: int | None) -> None:
        self._engine, self._limit = engine, limit
        self._room: Room | None = None
        self._never = run_options(NEVER) if engine.captures else None
        self.logits = np.zeros((batch_size, 1, engine.manifest.model.n_logits), engine.logits_dtype)
        with self._turn():
            self._reserve(size or 1, 0)

    def __del__(self) -> None:
        with self._engine.turn:
            if self._room is not None:
                self._engine.spare.give(self._room)
            self._room = None

    @property
    def capacity(self) -> int:
        return self._room.shape[1] if self._room else 0

    def step(self, tokens: Sequence[int | None], held: Sequence[int]) -> None:
        """Run all rows; the logits are in `logits[row, 0]`."""
        positions = np.minimum(held, self._limit - 1).astype(np.int64)[:, None]
        with self._turn():
            room = self._reserve(int(positions.max()) + 1, max(held))
            room.ids.update_inplace(np.array([[token or 0] for token in tokens], np.int64))
            room.positions.update_inplace(positions)
            if not self._engine.captures:  # a graph that can be captured reads the mask's length alone
                room.mask.update_inplace((np.arange(self.capacity) <= positions).astype(np.int64))
            room.steps.run(room.options)
            np.copyto(self.logits, room.logits.numpy())

    def fill(
        self, new: Mapping[int, np.ndarray], held: Sequence[int], outs: Mapping[int, np.ndarray] | None = None
    ) -> None:
        """Run the new tokens of one row after the other, in pieces of the artifact's prefill_chunk. A row's last logits
        are in `logits[row, 0]`, or with `outs` those of all its tokens in outs[row] (n, V)."""
        with self._turn():
            room = self._reserve(max(held[row] + len(ids) for row, ids in new.items()), max(held))
            for row, ids in new.items():
                binding = Binding(self._engine, self._engine.session)
                binding.rows(room.places(row, row + 1))
                for start, piece in self._engine.pieces(ids):
                    logits = self._fill_piece(binding, piece, held[row] + start, every=outs is not None)
                    if outs is not None:
                        outs[row][start : start + len(piece)] = logits
                    else:
                        self.logits[row, 0] = logits[-1]

    def _fill_piece(self, binding: Binding, piece: np.ndarray, held: int, *, every: bool) -> np.ndarray:
        """(n, V): the logits of all of the piece, or at least the last."""
        total = held + len(piece)
        binding.small(piece[None], np.arange(held, total)[None], 0 if every else 1)
        binding.mask(np.ones((1, total), np.int64))
        kept = len(piece) if every or not self._engine.logits_input else 1
        logits = np.empty((1, kept, self.logits.shape[2]), self.logits.dtype)
        binding.logits(logits)
        binding.run(self._never)
        return logits[0]

    def rewind(self, lengths: Sequence[int]) -> None:
        """Nothing to do: what lies behind a row's length is never read."""

    def _reserve(self, length: int, used: int) -> Room:
        """A room for `length` tokens a row that has the first `used` of the one before."""
        if self._room and length <= self.capacity:
            return self._room
        room = self._new_room((len(self.logits), capacity_for(length, self._limit)))
        if self._room:
            room.copy(self._room, used)
            self._engine.spare.give(self._room)
        self._room = room
        return room

    def _new_room(self, shape: tuple[int, int]) -> Room:
        engine = self._engine
        while True:
            try:
                return engine.spare.take(shape) or Room.laid_out(engine, shape)
            except Exception as error:
                if not is_full(error):
                    raise
                if not engine.spare.clear():
                    what = f"{shape[0]} rows of {shape[1]} tokens take {cache_bytes(engine, *shape) / 1e9:.1f} GB"
                    says = f"the device has no memory for the cache: {what}; run fewer rows at once"
                    raise GptxError(says) from error

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with self._engine.turn:
            try:
                yield
            except GptxError:
                raise
            except Exception as error:  # ONNX Runtime's
                raise self._engine.failed(error) from error


@dataclass(frozen=True)
class Room:
    """Some rows' place on the device, in OrtValues. One buffer (B, G, capacity, D) for each layer's keys and each layer's
    values is bound as past and as present; a step's inputs and its logits stay where they are, too, so that its kernels can
    be captured once as a CUDA graph, which each step replays."""

    engine: Engine
    shape: tuple[int, int]  # rows, capacity
    buffers: list[Any]
    ids: Any
    positions: Any
    mask: Any
    logits: Any
    steps: Binding
    graph_id: int  # NEVER: of a graph that cannot be captured
    options: Any  # for runs of steps

    @classmethod
    def laid_out(cls, engine: Engine, shape: tuple[int, int]) -> Room:
        (rows, capacity), model = shape, engine.manifest.model
        cache = (rows, model.n_kv_head, capacity, model.head_dim)
        zeros = np.zeros(cache, engine.cache_dtype)  # what is masked is still multiplied
        buffers = [_placed(zeros, engine.device) for _ in range(2 * model.n_layer)]
        ids, positions = (_placed(np.zeros((rows, 1), np.int64), engine.device) for _ in range(2))
        mask = _placed(np.ones((rows, capacity), np.int64), engine.device)
        logits = _placed(np.zeros((rows, 1, model.n_logits), engine.logits_dtype), engine.device)
        graph_id = next(engine.graph_ids) if engine.captures else NEVER
        options = run_options(graph_id) if engine.captures else None
        steps = Binding(engine, engine.session)
        room = cls(engine, shape, buffers, ids, positions, mask, logits, steps, graph_id, options)
        steps.rows(room.places(0, rows))
        steps.stay(ids, positions, mask, logits)
        return room

    @property
    def size(self) -> int:
        return cache_bytes(self.engine, *self.shape)

    def places(self, first: int, last: int) -> list[tuple[int, tuple[int, ...]]]:
        """Pointer and shape of rows first..last in each buffer."""
        rows, *rest = self.buffers[0].shape()
        row_bytes = math.prod(rest) * self.engine.cache_dtype.itemsize
        return [(buffer.data_ptr() + first * row_bytes, (last - first, *rest)) for buffer in self.buffers]

    def copy(self, other: Room, used: int) -> None:
        """Take the first `used` tokens of each row of another room of as many rows."""
        for mine, its in zip(self.buffers, other.buffers):
            array = np.zeros(mine.shape(), self.engine.cache_dtype)
            array[:, :, :used] = its.numpy()[:, :, :used]
            mine.update_inplace(array)

    def let_go(self) -> None:
        if self.graph_id != NEVER:
            self.engine.session.release_captured_graph(self.graph_id)


def _placed(array: np.ndarray, device: str) -> Any:
    value = onnxruntime().OrtValue.ortvalue_from_shape_and_type(array.shape, array.dtype.type, device, 0)
    value.update_inplace(array)
    return value
