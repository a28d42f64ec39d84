"""CUDA where there is none: what gptx would open there is opened on the CPU, which computes the same, and all of gptx's own
part (the graph for CUDA, the cache, the steps that stay in place) runs as it would. ONNX Runtime's part needs `-m gpu`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gptx.ort import graph as onnx_graph
from gptx.ort import providers


@contextmanager
def pretend_cuda(*, capturing: bool = True) -> Iterator[list[Path]]:
    """Yields the graphs that were opened. capturing: runs get the ids of CUDA graphs, which the CPU takes and ignores."""
    opened: list[Path] = []

    def open_on_cuda(graph: Path, threads: int | None, *, capture: bool) -> Any:
        opened.append(graph)
        session = providers.open_on_cpu(graph, threads)
        if capture and capturing:
            capturable.append(session)
        return session

    capturable: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_graph, "open_on_cuda", open_on_cuda)
        patch.setattr(onnx_graph, "captures", lambda session: session in capturable)
        patch.setattr(onnx_graph.OnnxGraph, "device", "cpu")
        yield opened
