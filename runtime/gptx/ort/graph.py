"""An artifact's graph, opened and compared with the manifest: manifest in, OnnxGraph out, or an ArtifactError.

An OnnxGraph may be shared between threads. It knows the graph's facts (cache form, types, inputs) and holds no state.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gptx.artifact.manifest import Manifest
from gptx.errors import ArtifactError, ProviderError
from gptx.ort import compiled
from gptx.ort.buffer_pool import BufferPool
from gptx.ort.providers import (
    CPU,
    CUDA,
    captures,
    check_options,
    device_lock,
    first_line,
    library_folder,
    onnxruntime,
    open_on_cpu,
    open_on_cuda,
    tries_cuda,
)
from gptx.progress import note
from gptx.system.huge_pages import LargePages
from gptx.system.trim_memory import release

_one_at_a_time = threading.Lock()
_sessions: weakref.WeakSet[Any] = weakref.WeakSet()
LARGE = 100_000_000  # bytes of an artifact whose peak of memory is worth 10 ms
DTYPES = {"tensor(float)": np.dtype(np.float32), "tensor(float16)": np.dtype(np.float16)}


@dataclass(frozen=True)
class OnnxGraph:
    session: Any  # onnxruntime.InferenceSession
    decode: (
        Any | None
    )  # another that runs single rows on the same cache, where the artifact has a graph for them
    manifest: Manifest
    provider: str  # what runs the graph, as ORT calls it
    file: Path  # the one that was opened: the portable one, or the one compiled for this machine
    decode_file: Path | None  # of `decode`, likewise
    logits_input: str | None  # by which the head is computed for as many positions as asked
    takes_positions: bool
    logits_dtype: np.dtype
    cache_dtype: np.dtype
    large_pages: LargePages  # for the weights, once sessions have made enough calls
    device_lock: AbstractContextManager[
        Any
    ]  # within which the device is used: see providers.device_lock
    captures: bool  # steps become CUDA graphs, each with an id of its own
    graph_ids: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    buffer_pool: BufferPool = field(
        default_factory=BufferPool
    )  # unused cache buffers on the device

    @property
    def device(self) -> str:
        return "cuda" if self.provider == CUDA else "cpu"

    @property
    def past_names(self) -> list[str]:
        return _cache_names("past_key_values", self.manifest.model.n_layer)

    @property
    def present_names(self) -> list[str]:
        return _cache_names("present", self.manifest.model.n_layer)

    def pieces(self, ids: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """A prompt as the artifact wants it fed (prefill_chunk): where each piece starts, and its ids."""
        size = self.manifest.prefill_chunk
        return [(start, ids[start : start + size]) for start in range(0, len(ids), size)]

    def close(self) -> None:
        """Keep nothing on the device for sessions to come."""
        with self.device_lock:
            self.buffer_pool.close()

    def failed(self, error: Exception) -> ArtifactError:
        return ArtifactError(
            f"{self.file}: ONNX Runtime failed while running it: {first_line(error)}"
        )


class Opened(NamedTuple):
    """ORT's sessions, and the graphs that they have opened."""

    session: Any
    provider: str
    graph: Path
    decode: Any | None = None
    decode_graph: Path | None = None


def open_graph(
    manifest: Manifest,
    *,
    device: str = "cpu",
    threads: int | None = None,
    adjust_memory: bool = True,
) -> OnnxGraph:
    """Open the graph of an artifact. adjust_memory: see gptx.load.

    Raises UsageError, ProviderError for the device, ArtifactError for the graph.
    """
    check_options(device, threads)
    with (
        _one_at_a_time
    ):  # ORT unmaps what it packed while it opens a graph, and `release` must not meet that
        opened = _open_on_cuda(manifest, device, threads) if tries_cuda(device) else None
        large_pages = LargePages(enabled=adjust_memory)
        if opened is None:
            opened = _open_on_cpu(manifest, threads, adjust_memory)
            large_pages.end()
    session, graph = opened.session, opened.graph
    if opened.decode and _signature(opened.decode) != _signature(session):
        raise ArtifactError(
            f"{opened.decode_graph} has other inputs or outputs than {graph}: quantize the artifact again"
        )
    inputs = {node.name: node for node in session.get_inputs()}
    outputs = {node.name: node for node in session.get_outputs()}
    problems = list(_problems(manifest, inputs, outputs))
    if problems:
        raise ArtifactError(f"{graph} does not fit gptx.json: {'; '.join(problems)}")
    return OnnxGraph(
        session=session,
        decode=opened.decode,
        manifest=manifest,
        provider=opened.provider,
        file=graph,
        decode_file=opened.decode_graph,
        logits_input=_logits_input(session),
        takes_positions="position_ids" in inputs,
        logits_dtype=DTYPES[outputs["logits"].type],
        cache_dtype=np.dtype(manifest.cache_dtype),
        large_pages=large_pages,
        device_lock=device_lock(opened.provider),
        captures=captures(session),
    )


def _logits_input(session: Any) -> str | None:
    names = {node.name for node in session.get_overridable_initializers()}
    return next((name for name in ("num_logits_to_keep", "first_logit") if name in names), None)


def _open_on_cuda(manifest: Manifest, device: str, threads: int | None) -> Opened | None:
    """None (a note says why) where CUDA cannot be used and need not be."""
    graph = manifest.cuda or manifest.graph
    try:
        session = open_on_cuda(graph, threads, capture=manifest.cuda is not None)
    except ProviderError as error:
        if device == "cuda":
            raise
        note(f"on the CPU: {error}")
        return None
    except Exception as error:  # ORT has one exception class per status code and no base of its own
        raise _cannot_open(graph, error) from error
    if manifest.precision == "fp16" and manifest.cache == "shared" and manifest.cuda is None:
        note(
            f"{manifest.path} has no graph for CUDA, whose attention is faster: gptx quantize --to fp16 writes one now"
        )
    return Opened(session, CUDA, graph)


def _open_on_cpu(manifest: Manifest, threads: int | None, adjust_memory: bool) -> Opened:
    if adjust_memory and sum(facts.size for facts in manifest.files.values()) > LARGE:
        # what importing the library and reading the tokenizer took is not added to the peak
        release(library_folder())
    fits = _compiled_fits(manifest)
    # the decode graph first: ONNX Runtime rearranges its weights, which takes memory that is free again then
    decode, decode_graph = _open_decode(manifest, fits, threads, adjust_memory)
    session = _open_compiled(manifest, compiled.GRAPH, threads) if fits else None
    graph = manifest.path / compiled.GRAPH if session else manifest.graph
    if session is None:
        try:
            session = open_on_cpu(graph, threads)
        except ProviderError:
            raise
        except Exception as error:  # as above
            raise _cannot_open(graph, error) from error
    _keep(manifest, session, adjust_memory)
    return Opened(session, CPU, graph, decode, decode_graph)


def _cannot_open(graph: Path, error: Exception) -> ArtifactError:
    return ArtifactError(
        f"{graph}: ONNX Runtime {onnxruntime().__version__} cannot open it: {first_line(error)}"
    )


def _compiled_fits(manifest: Manifest) -> bool:
    """Whether there are compiled graphs for this machine; a note says why some that are there are not."""
    if not compiled.is_compiled(manifest):
        return False
    reason = compiled.misfit(manifest)
    if reason is not None:
        note(
            f"{manifest.path / compiled.GRAPH} is not used: {reason}; the portable graph is loaded"
        )
    return reason is None


def _open_compiled(manifest: Manifest, name: str, threads: int | None) -> Any | None:
    """The session of a compiled graph; None (a note says why) where it does not open."""
    try:
        return open_on_cpu(manifest.path / name, threads)
    except ProviderError:
        raise
    except Exception as error:  # as above
        reason = f"ONNX Runtime cannot open it: {first_line(error)}"
        note(f"{manifest.path / name} is not used: {reason}; the portable graph is loaded")
        return None


def _open_decode(
    manifest: Manifest, fits: bool, threads: int | None, adjust_memory: bool
) -> tuple[Any, Path] | tuple[None, None]:
    """The session of the artifact's decode graph, and the graph; None where it has none, or (a note says why) one that
    cannot be used."""
    if manifest.decode is None:
        return None, None
    session = _open_compiled(manifest, compiled.DECODE, threads) if fits else None
    graph = manifest.path / compiled.DECODE if session else manifest.decode
    try:
        session = session or open_on_cpu(manifest.decode, threads)
    except ProviderError:
        raise
    except Exception as error:  # as above
        note(
            f"{manifest.decode} is not used: {first_line(error)}; single rows run as all others do"
        )
        return None, None
    _keep(manifest, session, adjust_memory)
    return session, graph


def _keep(manifest: Manifest, session: Any, adjust_memory: bool) -> None:
    """Note an opened session, and release the memory that was needed only to open it. Under the lock."""
    _sessions.add(session)
    if adjust_memory:
        open_ones = list(
            _sessions
        )  # held until it is done: a session that goes unmaps its file too
        release(manifest.path, library_folder())
        del open_ones


def _signature(session: Any) -> list[tuple[str, str, list[Any]]]:
    nodes = [*session.get_inputs(), *session.get_overridable_initializers(), *session.get_outputs()]
    return [(node.name, node.type, node.shape) for node in nodes]


def _cache_names(start: str, n_layer: int) -> list[str]:
    return [f"{start}.{layer}.{part}" for layer in range(n_layer) for part in ("key", "value")]


def _problems(manifest: Manifest, inputs: dict[str, Any], outputs: dict[str, Any]):
    shape = manifest.model
    pasts = _cache_names("past_key_values", shape.n_layer)
    presents = _cache_names("present", shape.n_layer)
    needed = {"input_ids", "attention_mask", *pasts}
    for text, names in (
        ("inputs are missing", needed - set(inputs)),
        ("inputs that gptx does not feed", set(inputs) - needed - {"position_ids"}),
        ("outputs are missing", {"logits", *presents} - set(outputs)),
    ):
        if names:
            yield f"{text}: {_some(names)}"
    cache_type = {"float32": "tensor(float)", "float16": "tensor(float16)"}[manifest.cache_dtype]
    expected = [None, shape.n_kv_head, None, shape.head_dim]  # None: an axis that varies
    for name in pasts:
        node = inputs.get(name)
        if node is None:
            continue
        found = [size if isinstance(size, int) else None for size in node.shape]
        if (
            node.type != cache_type
            or len(found) != 4
            or any(f not in (None, e) for f, e in zip(found, expected))
        ):
            heads = f"{shape.n_kv_head} heads of {shape.head_dim}"
            yield f"{name} is {node.type} {node.shape}, expected {cache_type} of {heads}"
            break  # the other layers say the same
    for name, node in {**inputs, **outputs}.items():
        if name in ("input_ids", "attention_mask", "position_ids") and node.type != "tensor(int64)":
            yield f"{name} is {node.type}, expected tensor(int64)"
        if name == "logits" and node.type not in DTYPES:
            yield f"logits is {node.type}, expected one of {', '.join(DTYPES)}"
    logits = outputs.get("logits")
    if (
        logits is not None
        and isinstance(logits.shape[-1], int)
        and logits.shape[-1] != shape.n_logits
    ):
        name = "n_class" if shape.n_class else "vocab_size"
        yield f"logits has {logits.shape[-1]} values, expected {name} {shape.n_logits}"


def _some(names: set[str]) -> str:
    """At most four names: a graph of another kind lacks dozens."""
    listed = sorted(names)
    return ", ".join(listed[:4]) + (f" and {len(listed) - 4} more" if len(listed) > 4 else "")
