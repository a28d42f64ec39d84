"""Stored prefixes on the disk: a PrefixCache to a safetensors file, and back.

A file is bound to what its keys and values depend on: the graph, the weights, the type of the
cache, and the kernel order of native operators or the version of ONNX Runtime. A hash guards its
contents.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from gptx.engine.prefix_cache import BLOCK, Block, Parts, PrefixCache
from gptx.errors import ArtifactError, OutputError, UsageError, shown
from gptx.kv_cache.native import GROUP
from gptx.ort.graph import OnnxGraph
from gptx.ort.library import onnxruntime
from gptx.ort.native import KERNEL_ORDER

FORMAT = "gptx prefixes 1"


def binding(graph: OnnxGraph) -> dict[str, str]:
    """What keys and values of a graph depend on, by names for a message."""
    files = graph.manifest.files
    name = graph.file.relative_to(graph.manifest.path).as_posix()
    hashes = [facts.sha256 for key, facts in sorted(files.items()) if key.endswith("_data")]
    native = graph.kernels is not None
    return {
        "graph": files[name].sha256 if name in files else name,
        "weights": hashlib.sha256(" ".join(hashes).encode()).hexdigest(),
        "type of the cache": str(graph.cache_dtype),
        "operators": f"kernel order {KERNEL_ORDER}"
        if native
        else f"ONNX Runtime {onnxruntime().__version__} on {graph.provider}",
    }


def save_prefixes(path: str | Path, cache: PrefixCache, graph: OnnxGraph) -> None:
    """Write all stored prefixes to a file, or nothing. Raises OutputError."""
    path = _path(path)
    blocks = cache.blocks()
    number = {id(block): at for at, block in enumerate(blocks)}
    table = [[number.get(id(block.parent), -1), *block.tokens] for block in blocks]
    arrays = {
        str(at): np.concatenate(column, axis=1)
        for at, column in enumerate(zip(*(block.parts for block in blocks)))
    }
    metadata = {
        "format": FORMAT,
        "blocks": json.dumps(table),
        "sha256": _hash(table, arrays.values()),
        **binding(graph),
    }
    staging = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        save_file(arrays, staging, metadata)
        os.replace(staging, path)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise OutputError(f"cannot write {path}: {reason}") from error
    finally:
        with suppress(OSError):  # none was written, as the name is too long
            staging.unlink(missing_ok=True)


def load_prefixes(path: str | Path, cache: PrefixCache, graph: OnnxGraph) -> None:
    """Add the prefixes of a file to those that are stored.

    Raises ArtifactError for a file that is damaged, no such file, or of another model, and
    UsageError if it is no path.
    """
    path = _path(path)
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            _check_origin(path, metadata, graph)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        table = json.loads(metadata["blocks"])
        if metadata["sha256"] != _hash(table, [arrays[str(at)] for at in range(len(arrays))]):
            raise ValueError("its contents have another hash than it says")
        blocks = _blocks(table, arrays, graph)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist") from error
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{path} holds no prefixes, or is damaged: {error}") from error
    added: list[Block] = []
    for parent, tokens, parts in blocks:
        added.append(cache.add(tokens, parts, added[parent] if parent >= 0 else None))
    cache.shrink(cache.budget)


def _path(path: Any) -> Path:
    if isinstance(path, str | os.PathLike) and Path(path).name and b"\0" not in _bytes(path):
        return Path(path)
    raise UsageError(f"path is {shown(path)}, expected the path of a file")


def _bytes(path: str | os.PathLike[str]) -> bytes:
    """The path as the system takes it; a null byte, which no path has, for one that it cannot."""
    try:
        return os.fsencode(path)
    except UnicodeEncodeError:
        return b"\0"


def _check_origin(path: Path, metadata: Mapping[str, str], graph: OnnxGraph) -> None:
    if metadata.get("format") != FORMAT:
        raise ValueError(f"it says {metadata.get('format')!a:.40} where {FORMAT!r} is expected")
    for name, expected in binding(graph).items():
        if metadata.get(name) != expected:
            raise ArtifactError(
                f"{path} cannot be used: it was made with another {name}"
                f" ({metadata.get(name)!a:.40}, here {expected:.40})"
            )


def _hash(table: Any, arrays: Any) -> str:
    found = hashlib.sha256(json.dumps(table).encode())
    for array in arrays:
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def _blocks(
    table: list[list[int]], arrays: Mapping[str, np.ndarray], graph: OnnxGraph
) -> list[tuple[int, tuple[int, ...], Parts]]:
    """The index of the parent (-1: none), tokens and arrays of each block of a table.

    The table has [parent, token, token, ...] for each. Raises ValueError if it is wrong.
    """
    group = GROUP if graph.kernels else 1
    entries = [-(-(len(row) - 1) // group) * group for row in table]
    _check_arrays(arrays, sum(entries), graph)
    starts = np.cumsum([0, *entries])
    columns = [arrays[str(at)] for at in range(len(arrays))]
    blocks: list[tuple[int, tuple[int, ...], Parts]] = []
    for at, (parent, *tokens) in enumerate(table):
        whole = parent == -1 or (0 <= parent < at and len(blocks[parent][1]) == BLOCK)
        vocab = graph.manifest.model.vocab_size
        if not whole or not 0 < len(tokens) <= BLOCK or not all(0 <= one < vocab for one in tokens):
            raise ValueError(f"block {at} is impossible")
        parts: Parts = [column[:, starts[at] : starts[at + 1]].copy() for column in columns]
        blocks.append((parent, tuple(tokens), parts))
    return blocks


def _check_arrays(arrays: Mapping[str, np.ndarray], length: int, graph: OnnxGraph) -> None:
    model = graph.manifest.model
    parts: Sequence[Any] = graph.cache_parts * model.n_layer
    if arrays and len(arrays) != len(parts):
        raise ValueError(f"it has {len(arrays)} arrays, expected {len(parts)}")
    for at, part in enumerate(parts if arrays else ()):
        array, shape = arrays[str(at)], (model.n_kv_head, length, *part.shape)
        if array.shape != shape or array.dtype != part.dtype:
            raise ValueError(f"array {at} is {array.dtype} {array.shape}, expected {shape}")
