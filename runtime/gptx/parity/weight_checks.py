"""Weights without running them: are all of them numbers, and do the tables of positions reach as far as gptx.json says?

Reads every stored tensor of an artifact's graphs once, at the speed of memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from gptx.artifact.manifest import Manifest
from gptx.artifact.onnx_file import Node, OnnxFile, StoredTensor, packed_varints, read_onnx
from gptx.errors import ArtifactError

BLOCK = 1 << 22  # elements at a time
# TensorProto.DataType -> numpy type of what is stored; complex numbers are two floats each
FLOATS = {1: "<f4", 10: "<f2", 11: "<f8", 14: "<f4", 15: "<f8", 16: "<u2"}
BFLOAT16 = 16
# types of 8 bits -> the bytes that are NaN, and those that are infinite
SMALL_FLOATS: dict[int, tuple[list[int], list[int]]] = {
    17: ([0x7F, 0xFF], []),  # float8e4m3fn
    18: ([0x80], []),  # float8e4m3fnuz
    19: ([0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF], [0x7C, 0xFC]),  # float8e5m2
    20: ([0x80], []),  # float8e5m2fnuz
    24: ([0xFF], []),  # float8e8m0
}
_PASS_ON = {"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"}
# operator -> which of its inputs are tables of positions
_TABLES = {"GroupQueryAttention": (7, 8), "RotaryEmbedding": (1, 2, 3)}


def is_graph(name: str) -> bool:
    return name.endswith((".onnx", ".pb"))


def graphs_of(manifest: Manifest) -> list[OnnxFile]:
    """Every graph that gptx.json lists. Raises ArtifactError."""
    return [read_onnx(manifest.path / name) for name in manifest.files if is_graph(name)]


def check_weights(
    manifest: Manifest, graphs: list[OnnxFile], progress: Callable[[int], object] = lambda n: None
) -> tuple[int, list[str]]:
    """How many tensors were searched, and what is wrong: one sentence for each tensor with a NaN or an infinity in it."""
    seen: set[tuple[str, int, int]] = set()
    problems = []
    count = 0
    for graph in graphs:
        for tensor in graph.tensors:
            place = _place(manifest, graph, tensor)
            if tensor.kind not in FLOATS and tensor.kind not in SMALL_FLOATS:
                continue
            if place is not None:
                if place in seen:
                    continue
                seen.add(place)
            count += 1
            nans, infinities, ordinary = _count(manifest, tensor, place, progress)
            # a mask that is added to scores is made of 0 and -inf
            if nans or (infinities and ordinary):
                what = " and ".join(
                    f"{n:,} {kind}" for n, kind in ((nans, "NaN"), (infinities, "infinite")) if n
                )
                name = graph.path.relative_to(manifest.path).as_posix()
                problems.append(
                    f"{tensor.name or 'a constant'!a:.100} of {name} holds {what} values"
                )
    return count, problems


def _count(
    manifest: Manifest,
    tensor: StoredTensor,
    place: tuple[str, int, int] | None,
    progress: Callable[[int], object],
) -> tuple[int, int, bool]:
    """NaNs, infinities, and whether a value is neither 0 nor minus infinity."""
    nans = infinities = 0
    ordinary = False
    for stored in _values(manifest, tensor, place):
        progress(stored.nbytes)
        values = _as_floats(stored, tensor.kind)
        finite = np.isfinite(values)
        ordinary = ordinary or bool((values[finite] != 0).any()) or bool((values == np.inf).any())
        found = int(np.isnan(values).sum()) if not finite.all() else 0
        nans += found
        infinities += int(values.size - finite.sum()) - found
    return nans, infinities, ordinary


def _as_floats(values: np.ndarray, kind: int) -> np.ndarray:
    """What is stored, as floats of the same finiteness."""
    if kind == BFLOAT16:
        return (values.astype("<u4") << 16).view("<f4")
    if kind in SMALL_FLOATS:
        nans, infinities = SMALL_FLOATS[kind]
        meaning = np.ones(256, np.float32)
        meaning[nans], meaning[infinities] = np.nan, np.inf
        return meaning[values]
    return values


def _place(
    manifest: Manifest, graph: OnnxFile, tensor: StoredTensor
) -> tuple[str, int, int] | None:
    """(file, offset, bytes) of a tensor that lies outside the graph; None of one inside. Raises ArtifactError."""
    if not tensor.outside:
        return None
    location = tensor.outside.get("location", "")
    folder = graph.path.parent.relative_to(manifest.path)
    name = PurePosixPath(folder.as_posix(), location).as_posix()
    facts = manifest.files.get(name)
    try:
        offset = int(tensor.outside.get("offset", "0"))
        size = facts.size if facts else 0
        length = int(tensor.outside.get("length", size - offset))
    except ValueError:
        offset = length = -1
        size = 0
    if facts is None or not 0 <= offset <= offset + length <= size:
        raise ArtifactError(
            f"{graph.path} has weights at {location!a:.100}, offset {tensor.outside.get('offset', 0)!s:.30}, which is no"
            " place in a file that gptx.json lists: copy the artifact again"
        )
    return name, offset, length


def _values(
    manifest: Manifest, tensor: StoredTensor, place: tuple[str, int, int] | None
) -> Iterator[np.ndarray]:
    kind = FLOATS.get(tensor.kind, "u1")
    if place is not None:
        name, offset, length = place
        item = np.dtype(kind).itemsize
        if length >= item:
            mapped = np.memmap(manifest.path / name, np.uint8, "r", offset=offset, shape=(length,))
            for at in range(0, length - length % item, BLOCK * item):
                yield np.frombuffer(
                    mapped[at : at + BLOCK * item][: length // item * item - at], kind
                )
        return
    for number, value in tensor.values:
        if number == 5:  # int32_data: the bits of small floats, one number each
            bits = list(packed_varints(value)) if isinstance(value, memoryview) else [value]
            bits = np.array(bits, np.int64)
            yield bits.astype("<u2").view("<f2") if kind == "<f2" else bits.astype(kind)
        else:
            own = {4: "<f4", 10: "<f8"}.get(number, kind)
            yield np.frombuffer(
                value[: len(value) // np.dtype(own).itemsize * np.dtype(own).itemsize], own
            )


def position_tables(graph: OnnxFile) -> dict[str, StoredTensor]:
    """Stored tensors of which a row is taken by position: learned or computed positions, cosines and sines."""
    stored = {
        tensor.name: tensor for tensor in graph.tensors if tensor.dims and tensor.name
    }  # "": no input
    positions = {"position_ids"}
    found = {}
    for node in graph.nodes:
        if node.operator in _PASS_ON and node.inputs[:1] and node.inputs[0] in positions:
            positions |= set(node.outputs)
        for name in _looked_up(node, positions):
            if name in stored:
                found[name] = stored[name]
    return found


def _looked_up(node: Node, positions: set[str]) -> list[str]:
    if node.operator in ("Gather", "GatherBlockQuantized"):
        return node.inputs[:1] if node.inputs[1:2] and node.inputs[1] in positions else []
    return [
        node.inputs[place] for place in _TABLES.get(node.operator, ()) if place < len(node.inputs)
    ]


def check_tables(manifest: Manifest, graphs: list[OnnxFile]) -> tuple[list[str], list[str]]:
    """(what the tables of positions have, in words; what is wrong with them)."""
    n_ctx = manifest.model.n_ctx
    rows: dict[str, int] = {}
    problems = []
    for graph in graphs:
        tables = position_tables(graph)
        rows |= {name: table.dims[0] for name, table in tables.items()}
        for name, table in tables.items():
            if table.dims[0] < n_ctx:
                where = graph.path.relative_to(manifest.path).as_posix()
                problems.append(
                    f"n_ctx is {n_ctx} in gptx.json, and {name!a:.100} of {where} has rows for {table.dims[0]} positions"
                )
    words = [f"{name!a:.60} has {count}" for name, count in rows.items() if count != n_ctx]
    return words, problems


def rotary_problems(manifest: Manifest, graphs: list[OnnxFile]) -> list[str]:
    """Rotary tables that do not go on as they begin: each row is the one before, turned by the second row's angles."""
    problems = []
    for graph in graphs:
        stored = {tensor.name: tensor for tensor in graph.tensors if tensor.name}
        pairs = {tuple(n.inputs[7:9]) for n in graph.nodes if n.operator == "GroupQueryAttention"}
        for pair in sorted(
            pair for pair in pairs if len(pair) == 2 and all(name in stored for name in pair)
        ):
            cos, sin = (_table(manifest, graph, stored[name]) for name in pair)
            if cos is None or sin is None or cos.shape != sin.shape or len(cos) < 3:
                continue
            turned = cos[:-1] + 1j * sin[:-1]
            first = turned[0]
            with np.errstate(all="ignore"):
                gap = np.abs(
                    turned * ((cos[1] + 1j * sin[1]) / first) - (cos[1:] + 1j * sin[1:])
                ).max(-1)
            # a float32 of an angle of n radians is off by n * 6e-8
            wrong = np.flatnonzero(~(gap <= 0.01 + 2e-7 * len(cos)))
            if len(wrong):
                problems.append(
                    f"the rotary tables {pair[0]!a:.60} and {pair[1]!a:.60} break off at position {int(wrong[0]) + 1}"
                )
    return problems


def _table(manifest: Manifest, graph: OnnxFile, tensor: StoredTensor) -> np.ndarray | None:
    if tensor.kind not in (1, 10) or len(tensor.dims) != 2:
        return None
    parts: list[Any] = list(_values(manifest, tensor, _place(manifest, graph, tensor)))
    values = np.concatenate(parts) if parts else np.empty(0)
    if values.size != tensor.dims[0] * tensor.dims[1]:
        return None
    return values.reshape(tensor.dims).astype(np.float64)
