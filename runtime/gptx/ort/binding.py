"""IO binding: the memory that the runs of a session read from and write to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from gptx.ort.graph import OnnxGraph
from gptx.system.inside_library import inside_library


class Binding:
    """One IO binding of ONNX Runtime, with a method for each group of inputs and outputs.

    A bound input or output stays bound: every `run` uses the same memory, until the input or output
    is bound anew. The caller keeps that memory alive. On CUDA, ONNX Runtime copies CPU arrays to
    the device and back. B: rows, T: new tokens, V: logits of one token.
    """

    def __init__(self, graph: OnnxGraph, session: Any) -> None:
        self._graph, self._session, self._binding = graph, session, session.io_binding()
        shape = (1,) if graph.logits_input == "first_logit" else ()
        self._logits_wanted = np.zeros(shape, np.int64)

    def bind_cache(self, buffers: Iterable[tuple[int, tuple[int, ...]]]) -> None:
        """Bind each buffer (pointer, shape) as past and as present, in the order of past_names."""
        graph, device = self._graph, self._graph.device
        for past, present, (pointer, shape) in zip(graph.past_names, graph.present_names, buffers):
            self._binding.bind_input(past, device, 0, graph.cache_dtype.type, shape, pointer)
            self._binding.bind_output(present, device, 0, graph.cache_dtype.type, shape, pointer)

    def bind_ids(self, ids: np.ndarray, positions: np.ndarray, n_logits: int) -> None:
        """Bind token ids and positions, int64 (B, T) on the CPU.

        n_logits: the number of last positions to compute logits for; 0: all. A graph without an
        input for this number (see OnnxGraph.logits_input) always computes all.
        """
        self._binding.bind_cpu_input("input_ids", ids)
        if self._graph.takes_positions:
            self._binding.bind_cpu_input("position_ids", positions)
        if name := self._graph.logits_input:
            self._logits_wanted[...] = -n_logits if name == "first_logit" else n_logits
            # By pointer: bind_cpu_input does not find inputs that have a default value.
            self._binding.bind_input(
                name,
                "cpu",
                0,
                np.int64,
                self._logits_wanted.shape,
                self._logits_wanted.ctypes.data,
            )

    def bind_mask(self, mask: np.ndarray) -> None:
        """Bind the attention mask, int64 (B, past and new tokens) on the CPU."""
        self._binding.bind_cpu_input("attention_mask", mask)

    def bind_logits(self, array: np.ndarray) -> None:
        """Bind the array (B, T, V) on the CPU that the logits are written to."""
        self._binding.bind_output(
            "logits", "cpu", 0, array.dtype.type, array.shape, array.ctypes.data
        )

    def bind_on_device(self, ids: Any, positions: Any, mask: Any, logits: Any) -> None:
        """Bind OrtValues on the device, in place of bind_ids, bind_mask and bind_logits.

        A captured CUDA graph needs its inputs and outputs at the same addresses in every run.
        """
        self._binding.bind_ortvalue_input("input_ids", ids)
        self._binding.bind_ortvalue_input("attention_mask", mask)
        if self._graph.takes_positions:
            self._binding.bind_ortvalue_input("position_ids", positions)
        self._binding.bind_ortvalue_output("logits", logits)

    def run(self, options: Any = None) -> None:
        """Run the graph. options: RunOptions. Raises ArtifactError if ONNX Runtime fails."""
        with inside_library:
            try:
                self._session.run_with_iobinding(self._binding, options)
            except Exception as error:
                raise self._graph.run_error(error) from error
