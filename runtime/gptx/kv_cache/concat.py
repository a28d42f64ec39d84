"""The KV cache of graphs that return a longer copy of the cache (cache form growing).

open.py explains the methods. B: rows, G: key-value heads, P: cached tokens, D: head size, T: new
tokens, V: logits of one token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gptx.ort.graph import OnnxGraph
from gptx.ort.library import onnxruntime
from gptx.system.inside_library import inside_library


class ConcatCache:
    """Keys and values of each layer as arrays (B, G, P, D); each run returns longer ones.

    Rows of different lengths share one array. `_mask` (B, P) marks real tokens with 1 and holes
    with 0. There are three kinds of holes: padding behind a shorter row's prompt, decode steps in
    which the row was idle, and tokens that were rewound.
    """

    def __init__(self, graph: OnnxGraph, batch_size: int) -> None:
        model = graph.manifest.model
        self._graph = graph
        self.logits = np.zeros((batch_size, 1, model.n_logits), graph.logits_dtype)
        self._mask = np.zeros((batch_size, 0), np.int64)
        self._skipped = 0  # positions before the first token; the arrays have no columns for them
        self._pasts: list[Any] = [self._empty(batch_size, 0) for _ in graph.past_names]

    @property
    def capacity(self) -> int:
        """P: the arrays have no room for further tokens."""
        return self._mask.shape[1]

    def decode(self, tokens: Sequence[int | None], lengths: Sequence[int]) -> None:
        """Run every row. Idle rows run with token 0, whose column is then marked as a hole."""
        limit = self._graph.manifest.model.n_ctx - 1
        ids = np.array([[token or 0] for token in tokens])
        positions = np.array([[min(count, limit)] for count in lengths])
        mask = np.concatenate((self._mask, np.ones((len(tokens), 1), np.int64)), axis=1)
        with self._graph.device_lock:
            logits, pasts = self._run(ids, positions, mask, self._pasts, n_logits=1)
        for row, token in enumerate(tokens):
            if token is None:
                mask[row, -1] = 0
        self._pasts, self._mask = pasts, mask
        self.logits[:, 0] = logits[:, -1]

    def prefill(
        self,
        new: Mapping[int, np.ndarray],
        lengths: Sequence[int],
        outs: Mapping[int, np.ndarray] | None = None,
    ) -> None:
        """Run each row alone, on its own tokens without holes, then put it back into the batch."""
        with self._graph.device_lock:
            filled = {
                row: self._prefill_row(row, ids, lengths[row], outs[row] if outs else None)
                for row, ids in new.items()
            }
            if len(self._mask) == 1:
                width = lengths[0] + len(new[0]) - self._skipped
                self._pasts, self._mask = filled[0], np.ones((1, width), np.int64)
            else:
                self._put_back(filled, {row: lengths[row] + len(ids) for row, ids in new.items()})

    def _prefill_row(
        self, row: int, ids: np.ndarray, past: int, out: np.ndarray | None
    ) -> list[Any]:
        """Run a row's new tokens behind its `past` tokens. Returns its arrays (1, G, length, D)."""
        alone = len(self._mask) == 1
        pasts = self._pasts if alone else [self._row(array, row) for array in self._pasts]
        for start, chunk in self._graph.chunks(ids):
            total = past + start + len(chunk)
            positions = np.arange(total - len(chunk), total)[None]
            n_logits = 1 if out is None else 0
            mask = np.ones((1, total - self._skipped), np.int64)
            logits, pasts = self._run(chunk[None], positions, mask, pasts, n_logits=n_logits)
            if out is None:
                self.logits[row, 0] = logits[0, -1]
            else:
                out[start : start + len(chunk)] = logits[0]
        return pasts

    def skip(self, n: int) -> None:
        """Give the first token the position `n`."""
        self._skipped = n

    def rewind(self, lengths: Sequence[int]) -> None:
        """Mark the dropped tokens as holes, and cut off the last columns if no row needs them."""
        mask = self._mask * (np.cumsum(self._mask, axis=1) <= np.array(lengths)[:, None])
        needed = np.flatnonzero(mask.any(axis=0))
        width = int(needed[-1]) + 1 if len(needed) else 0
        pasts = self._pasts
        if width < self.capacity:
            mask = np.ascontiguousarray(mask[:, :width])
            with self._graph.device_lock:
                pasts = [self._to_device(_to_host(past)[:, :, :width]) for past in pasts]
        self._pasts, self._mask = pasts, mask

    def add_rows(self, batch_size: int, used: int) -> None:
        """Make the rows `batch_size`. `used` is that of the other caches: all tokens are kept."""
        more = batch_size - len(self._mask)
        with self._graph.device_lock:
            pasts = [
                self._to_device(np.concatenate((_to_host(past), self._empty(more, self.capacity))))
                for past in self._pasts
            ]
        self.logits = np.zeros((batch_size, *self.logits.shape[1:]), self.logits.dtype)
        self._mask = np.concatenate((self._mask, np.zeros((more, self.capacity), np.int64)))
        self._pasts = pasts

    def read(self, row: int, start: int, end: int) -> list[np.ndarray]:
        """Copies of a row's keys and values at the positions `start` to before `end`."""
        with self._graph.device_lock:
            places = np.flatnonzero(self._mask[row])[start:end]
            return [_to_host(past)[row][:, places] for past in self._pasts]

    def write(self, row: int, n: int, parts: Sequence[np.ndarray]) -> None:
        """Make `parts` the keys and values of the first `n` positions of a row."""
        with self._graph.device_lock:
            self._put_back({row: [part[None, :, :n] for part in parts]}, {row: n})

    def _row(self, past: Any, row: int) -> Any:
        """The tokens of one row without holes: (B, G, P, D) -> (1, G, length, D)."""
        return self._to_device(_to_host(past)[row : row + 1, :, self._mask[row] == 1])

    def _put_back(self, filled: dict[int, list[Any]], lengths: dict[int, int]) -> None:
        """Put rows that ran alone back beside the others, padded on the right.

        filled: row -> its arrays (1, G, length, D), in the order of `_pasts`.
        """
        width = max(self.capacity, *lengths.values())
        mask = np.zeros((len(self._mask), width), np.int64)
        mask[:, : self.capacity] = self._mask
        for row, length in lengths.items():
            mask[row] = np.arange(width) < length
        pasts = []
        for index, past in enumerate(self._pasts):
            stacked = self._empty(len(mask), width)
            stacked[:, :, : self.capacity] = _to_host(past)
            for row, length in lengths.items():
                stacked[row] = 0
                stacked[row, :, :length] = _to_host(filled[row][index])[0]
            pasts.append(self._to_device(stacked))
        self._pasts, self._mask = pasts, mask

    def _empty(self, batch_size: int, width: int) -> np.ndarray:
        model = self._graph.manifest.model
        return np.zeros(
            (batch_size, model.n_kv_head, width, model.head_dim), self._graph.cache_dtype
        )

    def _to_device(self, past: np.ndarray) -> Any:
        """An array for the CPU, an OrtValue for a device. Empty arrays stay on the CPU."""
        past = np.ascontiguousarray(past)
        if self._graph.device == "cpu" or past.size == 0:
            return past
        return onnxruntime().OrtValue.ortvalue_from_numpy(past, self._graph.device, 0)

    def _run(
        self,
        ids: np.ndarray,
        positions: np.ndarray,
        mask: np.ndarray,
        pasts: list[Any],
        *,
        n_logits: int,
    ) -> tuple[np.ndarray, list[Any]]:
        """Run the graph once. Returns the logits (B, T, V) and the longer keys and values.

        n_logits: the number of last positions to compute logits for; 0: all.
        """
        graph = self._graph
        feeds = {"input_ids": ids, "attention_mask": mask}
        if graph.takes_positions:
            feeds["position_ids"] = positions
        if name := graph.logits_input:
            feeds[name] = np.array(n_logits, np.int64)
        feeds.update(zip(graph.past_names, pasts))
        try:
            run = _run_on_cpu if graph.device == "cpu" else _run_on_device
            logits, *presents = run(graph, feeds)
        except Exception as error:
            raise graph.run_error(error) from error
        return logits, presents


def _to_host(past: Any) -> np.ndarray:
    return past if isinstance(past, np.ndarray) else past.numpy()


def _run_on_cpu(graph: OnnxGraph, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    # The returned arrays share memory with ORT: nothing is copied.
    with inside_library:
        return graph.session.run(["logits", *graph.present_names], feeds)


def _run_on_device(graph: OnnxGraph, feeds: dict[str, Any]) -> list[Any]:
    """The logits as an array on the CPU, then keys and values as OrtValues on the device."""
    binding = graph.session.io_binding()
    for name, value in feeds.items():
        if name == graph.logits_input:  # by pointer: see binding.py
            binding.bind_input(name, "cpu", 0, np.int64, (), value.ctypes.data)
        elif isinstance(value, np.ndarray):
            binding.bind_cpu_input(name, value)
        else:
            binding.bind_ortvalue_input(name, value)
    binding.bind_output("logits", "cpu")
    for name in graph.present_names:
        binding.bind_output(name, graph.device, 0)
    with inside_library:
        graph.session.run_with_iobinding(binding)
    logits, *presents = binding.get_outputs()
    return [logits.numpy(), *presents]
