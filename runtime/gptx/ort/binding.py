"""A session of the graph, and what its next run finds bound: arrays and pointers in, the same memory filled."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from gptx.ort.graph import OnnxGraph


class Binding:
    """Small inputs and logits are the CPU's; ONNX Runtime copies them where the graph runs elsewhere."""

    def __init__(self, graph: OnnxGraph, session: Any) -> None:
        self._graph, self._session, self._binding = graph, session, session.io_binding()
        self._wanted = np.zeros((1,) if graph.logits_input == "first_logit" else (), np.int64)

    def rows(self, places: Iterable[tuple[int, tuple[int, ...]]]) -> None:
        """The pointer and the shape of each layer's keys and of its values, which are read and written."""
        graph, device = self._graph, self._graph.device
        for past, present, (pointer, shape) in zip(graph.past_names, graph.present_names, places):
            self._binding.bind_input(past, device, 0, graph.cache_dtype.type, shape, pointer)
            self._binding.bind_output(present, device, 0, graph.cache_dtype.type, shape, pointer)

    def small(self, ids: np.ndarray, positions: np.ndarray, keep: int) -> None:
        """`keep`: how many of the last logits are wanted, 0 all."""
        self._binding.bind_cpu_input("input_ids", ids)
        if self._graph.takes_positions:
            self._binding.bind_cpu_input("position_ids", positions)
        if name := self._graph.logits_input:
            self._wanted[...] = -keep if name == "first_logit" else keep
            # by pointer: bind_cpu_input looks names up among the required inputs, and this is one with a default
            self._binding.bind_input(
                name, "cpu", 0, np.int64, self._wanted.shape, self._wanted.ctypes.data
            )

    def mask(self, mask: np.ndarray) -> None:
        self._binding.bind_cpu_input("attention_mask", mask)

    def logits(self, array: np.ndarray) -> None:
        self._binding.bind_output(
            "logits", "cpu", 0, array.dtype.type, array.shape, array.ctypes.data
        )

    def stay(self, ids: Any, positions: Any, mask: Any, logits: Any) -> None:
        """In place of small, mask and logits: OrtValues of the device, which are the same in every run."""
        self._binding.bind_ortvalue_input("input_ids", ids)
        self._binding.bind_ortvalue_input("attention_mask", mask)
        if self._graph.takes_positions:
            self._binding.bind_ortvalue_input("position_ids", positions)
        self._binding.bind_ortvalue_output("logits", logits)

    def run(self, options: Any = None) -> None:
        try:
            self._session.run_with_iobinding(self._binding, options)
        except Exception as error:
            raise self._graph.failed(error) from error
