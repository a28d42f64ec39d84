"""An artifact's graph, opened: a manifest in, an OnnxGraph out, or an ArtifactError."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gptx.artifact.cache_parts import CachePart, cache_names, cache_parts
from gptx.artifact.manifest import Manifest
from gptx.errors import ArtifactError
from gptx.ort.buffer_pool import BufferPool
from gptx.ort.check_graph import EMBEDS, LOGITS_DTYPES, cache_dtype, check_graph
from gptx.ort.cuda import captures, device_lock
from gptx.ort.device import CUDA, check_device
from gptx.ort.library import first_line
from gptx.ort.open_sessions import open_sessions
from gptx.system.huge_pages import HugePages


@dataclass(frozen=True)
class OnnxGraph:
    """An artifact's graph and what the runtime must know to feed it.

    Threads: any number of threads may share an OnnxGraph, each with its own KV cache. On CUDA a
    thread holds `device_lock` while it uses the device.
    """

    session: Any  # onnxruntime.InferenceSession
    decode: (
        Any | None
    )  # a second session, for runs of a single row, if the artifact has such a graph
    manifest: Manifest
    provider: str  # the execution provider: CPUExecutionProvider or CUDA's
    file: Path  # the file of `session`: the artifact's graph, or the one compiled for this machine
    decode_file: Path | None  # the file of `decode`, likewise
    logits_input: str | None  # input for the number of logits; None: no such input
    takes_positions: (
        bool  # True: position_ids is an input; False: the graph counts positions itself
    )
    logits_dtype: np.dtype
    cache_dtype: np.dtype  # of keys and values
    n_embd: int | None  # numbers of a row of a step graph's inputs_embeds; None: no such input
    huge_pages: HugePages  # moves the weights into huge pages after some runs
    device_lock: AbstractContextManager[Any]  # held while the device is used; see cuda.device_lock
    kernels: str | None  # of native operators, if `session` is the step graph's; see ort/native.py
    captures: bool  # runs are captured as CUDA graphs, each under an id from graph_ids
    graph_ids: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    buffer_pool: BufferPool = field(
        default_factory=BufferPool
    )  # unused cache buffers on the device

    @property
    def device(self) -> str:
        """ONNX Runtime's name of the device: "cpu" or "cuda"."""
        return "cuda" if self.provider == CUDA else "cpu"

    @property
    def cache_parts(self) -> list[CachePart]:
        """The arrays of a layer's KV cache: keys, values and, of 8 bits, their scales."""
        return cache_parts(self.cache_dtype, self.manifest.model.head_dim)

    @property
    def past_names(self) -> list[str]:
        """The inputs of the KV cache: the arrays of layer 0, of layer 1, ..."""
        return cache_names("past_key_values", self.manifest.model.n_layer, self.cache_parts)

    @property
    def present_names(self) -> list[str]:
        """The outputs of the KV cache, in the order of past_names."""
        return cache_names("present", self.manifest.model.n_layer, self.cache_parts)

    def chunks(self, ids: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """Token ids (n,) in chunks of prefill_chunk tokens, each with its start in `ids`."""
        size = self.manifest.prefill_chunk
        return [(start, ids[start : start + size]) for start in range(0, len(ids), size)]

    def close(self) -> None:
        """Free the buffers in the pool. Buffers that are given later are freed at once."""
        with self.device_lock:
            self.buffer_pool.close()

    def run_error(self, error: Exception) -> ArtifactError:
        """The ArtifactError to raise for an error of ONNX Runtime during a run."""
        return ArtifactError(
            f"{self.file}: ONNX Runtime failed while running it: {first_line(error)}"
        )


def open_graph(
    manifest: Manifest,
    *,
    device: str = "cpu",
    threads: int | None = None,
    adjust_memory: bool = True,
    map_weights: bool = False,
) -> OnnxGraph:
    """Open the graph of an artifact, and compare it with the manifest.

    device, threads, adjust_memory and map_weights: see gptx.load. Raises UsageError for
    wrong values, ProviderError for the device, ArtifactError for the graph.
    """
    check_device(device, threads)
    opened = open_sessions(
        manifest, device, threads, adjust_memory=adjust_memory, map_weights=map_weights
    )
    session = opened.session
    check_graph(manifest, session, opened.file, native=opened.kernels is not None)
    if opened.decode and _signature(opened.decode) != _signature(session):
        raise ArtifactError(
            f"{opened.decode_file} has other inputs or outputs than {opened.file}: "
            "quantize the artifact again"
        )
    logits = next(node for node in session.get_outputs() if node.name == "logits")
    return OnnxGraph(
        session=session,
        decode=opened.decode,
        manifest=manifest,
        provider=opened.provider,
        file=opened.file,
        decode_file=opened.decode_file,
        logits_input=_logits_input(session),
        takes_positions=any(node.name == "position_ids" for node in session.get_inputs()),
        logits_dtype=LOGITS_DTYPES[logits.type],
        cache_dtype=cache_dtype(session.get_inputs()) or np.dtype(manifest.cache_dtype),
        n_embd=next((node.shape[1] for node in session.get_inputs() if node.name == EMBEDS), None),
        huge_pages=opened.huge_pages,
        device_lock=device_lock(opened.provider),
        kernels=opened.kernels,
        captures=captures(session),
    )


def _logits_input(session: Any) -> str | None:
    names = {node.name for node in session.get_overridable_initializers()}
    return next((name for name in ("num_logits_to_keep", "first_logit") if name in names), None)


def _signature(session: Any) -> list[tuple[str, str, list[Any]]]:
    """Name, type and shape of each input and output."""
    nodes = [*session.get_inputs(), *session.get_overridable_initializers(), *session.get_outputs()]
    return [(node.name, node.type, node.shape) for node in nodes]
