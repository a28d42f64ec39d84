"""Pretend that this machine has CUDA: what gptx would open there is opened on the CPU.

All of gptx's own code for CUDA runs: the graph for CUDA, CudaCache, decode steps at fixed
addresses. ONNX Runtime's part is tested by `pytest -m gpu` on a machine with a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gptx.ort import graph as onnx_graph
from gptx.ort import open_sessions
from gptx.ort.sessions import open_on_cpu


@contextmanager
def pretend_cuda(*, capturing: bool = True) -> Iterator[list[Path]]:
    """Yields a list to which each graph that gptx opens "on CUDA" is appended.

    capturing: runs get the ids of CUDA graphs, as on CUDA. The CPU accepts and ignores them.
    """
    opened: list[Path] = []

    def open_on_cuda(graph: Path, threads: int | None, *, capture: bool) -> Any:
        opened.append(graph)
        session = open_on_cpu(graph, threads)
        if capture and capturing:
            capturable.append(session)
        return session

    capturable: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_sessions, "open_on_cuda", open_on_cuda)
        patch.setattr(onnx_graph, "captures", lambda session: session in capturable)
        patch.setattr(onnx_graph.OnnxGraph, "device", "cpu")
        yield opened
