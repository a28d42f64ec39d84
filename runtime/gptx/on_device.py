"""The cache of graphs that write into a buffer (forms shared and scatter), on CUDA. Its verbs: see cache.py."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gptx.binding import Binding
from gptx.engine import Engine
from gptx.errors import GptxError
from gptx.in_place import capacity_for
from gptx.providers import first_line, onnxruntime, run_options

NEVER = -1  # ONNX Runtime's id of a run that is neither captured nor replayed


class OnDevice:
    """One buffer (B, G, capacity, D) for each layer's keys and each layer's values, on the device, bound as past and as
    present. All rows take part in every step, an idle one with a token that is not kept. A step's inputs and outputs stay
    where they are, so that its kernels can be captured once as a CUDA graph, and each step replays it."""

    def __init__(self, engine: Engine, batch_size: int, *, limit: int, size: int | None) -> None:
        self._engine, self._limit = engine, limit
        self.logits = np.zeros((batch_size, 1, engine.manifest.model.n_logits), engine.logits_dtype)
        self.capacity = 0
        self._buffers: list[Any] = []  # OrtValues
        self._filling = run_options(NEVER) if engine.captures else None
        self._stepping: Any = None
        with engine.turn:
            self._reserve(size or 1, 0)

    def step(self, tokens: Sequence[int | None], held: Sequence[int]) -> None:
        """Run all rows; the logits are in `logits[row, 0]`. An idle row's token is written behind what it holds, where
        the next real one overwrites it, or in the last place of a full row, which can only be idle."""
        positions = np.minimum(held, self._limit - 1).astype(np.int64)[:, None]
        with self._engine.turn:
            self._reserve(int(positions.max()) + 1, max(held))
            self._ids.update_inplace(np.array([[token or 0] for token in tokens], np.int64))
            self._positions.update_inplace(positions)
            if not self._engine.captures:  # a graph that can be captured reads the mask's length alone
                self._mask.update_inplace((np.arange(self.capacity) <= positions).astype(np.int64))
            self._steps.run(self._stepping)
            np.copyto(self.logits, self._out.numpy())

    def fill(
        self, new: Mapping[int, np.ndarray], held: Sequence[int], outs: Mapping[int, np.ndarray] | None = None
    ) -> None:
        """Run the new tokens of one row after the other, in pieces of the artifact's prefill_chunk. A row's last logits
        are in `logits[row, 0]`, or with `outs` those of all its tokens in outs[row] (n, V)."""
        with self._engine.turn:
            self._reserve(max(held[row] + len(ids) for row, ids in new.items()), max(held))
            for row, ids in new.items():
                binding = Binding(self._engine, self._engine.session)
                binding.rows([_row(buffer, row, self._engine.cache_dtype) for buffer in self._buffers])
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
        binding.run(self._filling)
        return logits[0]

    def rewind(self, lengths: Sequence[int]) -> None:
        """Nothing to do: what lies behind a row's length is never read."""

    def _reserve(self, length: int, used: int) -> None:
        """Make room for `length` tokens a row, keeping the first `used`; what steps use is laid out anew then."""
        if length <= self.capacity:
            return
        engine, model, batch_size = self._engine, self._engine.manifest.model, len(self.logits)
        capacity = capacity_for(length, self._limit)
        shape = (batch_size, model.n_kv_head, capacity, model.head_dim)
        try:
            if not self._buffers:
                zeros = np.zeros(shape, engine.cache_dtype)  # zeros: what is masked is still multiplied
                buffers = [self._place(zeros) for _ in range(2 * model.n_layer)]
            else:
                buffers = [self._longer(buffer, shape, used) for buffer in self._buffers]
            self._lay_out_steps(buffers, batch_size, capacity)
        except Exception as error:  # what ONNX Runtime raises when the device's memory is full
            size = 2 * model.n_layer * math.prod(shape) * engine.cache_dtype.itemsize / 1e9
            what = f"{batch_size} rows of {capacity} tokens take {size:.1f} GB"
            raise GptxError(f"no room for the cache on the device: {what} ({first_line(error)})") from error
        self._buffers, self.capacity = buffers, capacity

    def _lay_out_steps(self, buffers: Sequence[Any], batch_size: int, capacity: int) -> None:
        engine = self._engine
        self._ids = self._place(np.zeros((batch_size, 1), np.int64))
        self._positions = self._place(np.zeros((batch_size, 1), np.int64))
        self._mask = self._place(np.ones((batch_size, capacity), np.int64))
        self._out = self._place(self.logits)
        self._steps = Binding(engine, engine.session)
        self._steps.rows([(buffer.data_ptr(), tuple(buffer.shape())) for buffer in buffers])
        self._steps.stay(self._ids, self._positions, self._mask, self._out)
        if engine.captures:
            if self._stepping is not None:
                self._forget()  # the CUDA graph of the buffers that these replace
            graph_id = next(engine.graph_ids)
            self._stepping = run_options(graph_id)
            self._forget = weakref.finalize(self, engine.release_captured, graph_id)
            self._forget.atexit = False

    def _longer(self, buffer: Any, shape: tuple[int, ...], used: int) -> Any:
        longer = np.zeros(shape, self._engine.cache_dtype)
        longer[:, :, :used] = buffer.numpy()[:, :, :used]
        return self._place(longer)

    def _place(self, array: np.ndarray) -> Any:
        values, engine = onnxruntime().OrtValue, self._engine
        value = values.ortvalue_from_shape_and_type(array.shape, array.dtype.type, engine.device, 0)
        value.update_inplace(np.ascontiguousarray(array))
        return value


def _row(buffer: Any, row: int, dtype: np.dtype) -> tuple[int, tuple[int, ...]]:
    shape = (1, *buffer.shape()[1:])
    return buffer.data_ptr() + row * math.prod(shape) * dtype.itemsize, shape
