"""Checks of stored weights, without running the graph: finite values, and tables of positions.

Every stored tensor of an artifact's graphs is read once, at the speed of memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from gptx.artifact.manifest import Manifest
from gptx.artifact.onnx_file import Node, OnnxFile, StoredTensor, packed_varints, read_onnx
from gptx.errors import ArtifactError

BLOCK = 1 << 22  # elements that are read at once
# TensorProto.DataType -> numpy type of the stored numbers; a complex number is two floats
FLOATS = {1: "<f4", 10: "<f2", 11: "<f8", 14: "<f4", 15: "<f8", 16: "<u2"}
BFLOAT16 = 16
# float types of 8 bits -> the bytes that mean NaN, and the bytes that mean infinity
SMALL_FLOATS: dict[int, tuple[list[int], list[int]]] = {
    17: ([0x7F, 0xFF], []),  # float8e4m3fn
    18: ([0x80], []),  # float8e4m3fnuz
    19: ([0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF], [0x7C, 0xFC]),  # float8e5m2
    20: ([0x80], []),  # float8e5m2fnuz
    24: ([0xFF], []),  # float8e8m0
}
INT32_DATA, FLOAT_DATA, DOUBLE_DATA = 5, 4, 10  # fields of TensorProto
# operators that change neither the values of position ids nor their order
_PASS_ON = {"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"}
# operator -> inputs that are tables with a row for each position
_TABLES = {"GroupQueryAttention": (7, 8), "RotaryEmbedding": (1, 2, 3)}

# (file, offset, length in bytes) of a tensor that is stored outside the graph file
Place = tuple[str, int, int]


def is_graph(name: str) -> bool:
    """True for the file name of a graph: exported (.onnx) or compiled (.pb)."""
    return name.endswith((".onnx", ".pb"))


def graphs_of(manifest: Manifest) -> list[OnnxFile]:
    """Every graph that gptx.json lists. Raises ArtifactError for a file that is no graph."""
    return [read_onnx(manifest.path / name) for name in manifest.files if is_graph(name)]


def check_weights(
    manifest: Manifest, graphs: list[OnnxFile], progress: Callable[[int], object] = lambda n: None
) -> tuple[int, list[str]]:
    """Search all float tensors for NaN and infinity.

    `progress` is called with the number of bytes that were read. Returns how many tensors were
    searched, and a sentence for each bad one. Raises ArtifactError if a tensor lies outside the
    listed files.
    """
    seen: set[Place] = set()
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
            if problem := _problem(manifest, tensor, place, progress):
                name = graph.path.relative_to(manifest.path).as_posix()
                problems.append(f"{tensor.name or 'a constant'!a:.100} of {name} {problem}")
    return count, problems


def _problem(
    manifest: Manifest,
    tensor: StoredTensor,
    place: Place | None,
    progress: Callable[[int], object],
) -> str:
    nans, infinities, ordinary = _count(manifest, tensor, place, progress)
    # An attention mask, added to scores, consists of 0 and -inf: that is no problem.
    if not nans and not (infinities and ordinary):
        return ""
    counts = ((nans, "NaN"), (infinities, "infinite"))
    return f"holds {' and '.join(f'{n:,} {kind}' for n, kind in counts if n)} values"


def _count(
    manifest: Manifest,
    tensor: StoredTensor,
    place: Place | None,
    progress: Callable[[int], object],
) -> tuple[int, int, bool]:
    """Count the NaNs and the infinities of a tensor.

    Also returns True if the tensor holds a number other than 0 and -inf.
    """
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
    """Convert stored numbers to floats that are NaN or infinite exactly where the stored ones are.

    Finite numbers of 8-bit types become 1; their values are not needed.
    """
    if kind == BFLOAT16:
        return (values.astype("<u4") << 16).view("<f4")
    if kind in SMALL_FLOATS:
        nans, infinities = SMALL_FLOATS[kind]
        meaning = np.ones(256, np.float32)
        meaning[nans], meaning[infinities] = np.nan, np.inf
        return meaning[values]
    return values


def _place(manifest: Manifest, graph: OnnxFile, tensor: StoredTensor) -> Place | None:
    """The place of a tensor that is stored outside the graph file; None for one inside.

    Raises ArtifactError if the place is not within a file that gptx.json lists.
    """
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
            f"{graph.path} has weights at {location!a:.100},"
            f" offset {tensor.outside.get('offset', 0)!s:.30}, which is no place in a file that"
            " gptx.json lists: copy the artifact again"
        )
    return name, offset, length


def _values(manifest: Manifest, tensor: StoredTensor, place: Place | None) -> Iterator[np.ndarray]:
    """The stored numbers in blocks of at most BLOCK elements, in the type that FLOATS names.

    If the stored bytes end in the middle of a number, these last bytes are left out.
    """
    kind = FLOATS.get(tensor.kind, "u1")
    if place is not None:
        yield from _values_outside(manifest, place, np.dtype(kind))
        return
    for number, value in tensor.values:
        if number == INT32_DATA:  # the bits of small floats, each in an int32
            bits = list(packed_varints(value)) if isinstance(value, memoryview) else [value]
            bits = np.array(bits, np.int64)
            yield bits.astype("<u2").view("<f2") if kind == "<f2" else bits.astype(kind)
        else:
            dtype = np.dtype({FLOAT_DATA: "<f4", DOUBLE_DATA: "<f8"}.get(number, kind))
            yield np.frombuffer(value[: len(value) // dtype.itemsize * dtype.itemsize], dtype)


def _values_outside(manifest: Manifest, place: Place, dtype: np.dtype) -> Iterator[np.ndarray]:
    name, offset, length = place
    whole = length // dtype.itemsize * dtype.itemsize
    if not whole:  # an empty file cannot be mapped
        return
    mapped = np.memmap(manifest.path / name, np.uint8, "r", offset=offset, shape=(whole,))
    for at in range(0, whole, BLOCK * dtype.itemsize):
        yield np.frombuffer(mapped[at : at + BLOCK * dtype.itemsize], dtype)


def position_tables(graph: OnnxFile) -> dict[str, StoredTensor]:
    """Stored tensors with a row for each position, by name.

    These are position embeddings, learned or sinusoidal, and the cosines and sines of rotary
    embeddings.
    """
    # An operator's input that is left out has the name "".
    stored = {tensor.name: tensor for tensor in graph.tensors if tensor.dims and tensor.name}
    positions = {"position_ids"}
    found = {}
    for node in graph.nodes:
        if node.operator in _PASS_ON and node.inputs[:1] and node.inputs[0] in positions:
            positions |= set(node.outputs)
        for name in _tables_of(node, positions):
            if name in stored:
                found[name] = stored[name]
    return found


def _tables_of(node: Node, positions: set[str]) -> list[str]:
    """Inputs of a node that are looked up by values named in `positions`."""
    if node.operator in ("Gather", "GatherBlockQuantized"):
        return node.inputs[:1] if node.inputs[1:2] and node.inputs[1] in positions else []
    places = _TABLES.get(node.operator, ())
    return [node.inputs[place] for place in places if place < len(node.inputs)]


def check_tables(manifest: Manifest, graphs: list[OnnxFile]) -> tuple[list[str], list[str]]:
    """Compare the length of every table of positions with n_ctx of gptx.json.

    Returns a phrase for each table whose length is not n_ctx, and a sentence for each table that is
    too short.
    """
    n_ctx = manifest.model.n_ctx
    rows: dict[str, int] = {}
    problems = []
    for graph in graphs:
        tables = position_tables(graph)
        rows |= {name: table.dims[0] for name, table in tables.items()}
        where = graph.path.relative_to(manifest.path).as_posix()
        problems += [
            f"n_ctx is {n_ctx} in gptx.json, and {name!a:.100} of {where} has rows for"
            f" {table.dims[0]} positions"
            for name, table in tables.items()
            if table.dims[0] < n_ctx
        ]
    others = [f"{name!a:.60} has {count}" for name, count in rows.items() if count != n_ctx]
    return others, problems


def rotary_problems(manifest: Manifest, graphs: list[OnnxFile]) -> list[str]:
    """Find rotary tables that are only right up to some position: a sentence for each.

    Such a table may have been cut, and filled up with other rows to its old length. Row n of a
    correct table holds the cosines (or sines) of the angles n * f. So each row is the row before
    it, rotated by the angles between the first two rows.
    """
    problems = []
    for graph in graphs:
        stored = {tensor.name: tensor for tensor in graph.tensors if tensor.name}
        pairs = {tuple(n.inputs[7:9]) for n in graph.nodes if n.operator == "GroupQueryAttention"}
        whole = [pair for pair in pairs if len(pair) == 2 and all(name in stored for name in pair)]
        for pair in sorted(whole):
            cos, sin = (_table(manifest, graph, stored[name]) for name in pair)
            if cos is None or sin is None or cos.shape != sin.shape or len(cos) < 3:
                continue
            wrong = _rows_that_break_off(cos, sin)
            if len(wrong):
                problems.append(
                    f"the rotary tables {pair[0]!a:.60} and {pair[1]!a:.60} break off at position"
                    f" {int(wrong[0]) + 1}"
                )
    return problems


def _rows_that_break_off(cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Every n for which row n + 1 is not row n rotated once more; tables: (positions, angles)."""
    angles = cos + 1j * sin
    with np.errstate(all="ignore"):
        step = angles[1] / angles[0]
        gap = np.abs(angles[:-1] * step - angles[1:]).max(-1)
    # A float32 that holds an angle of n radians is off by up to n * 6e-8.
    return np.flatnonzero(~(gap <= 0.01 + 2e-7 * len(cos)))


def _table(manifest: Manifest, graph: OnnxFile, tensor: StoredTensor) -> np.ndarray | None:
    """A float32 or float16 matrix as float64; None for every other tensor."""
    if tensor.kind not in (1, 10) or len(tensor.dims) != 2:
        return None
    parts: list[Any] = list(_values(manifest, tensor, _place(manifest, graph, tensor)))
    values = np.concatenate(parts) if parts else np.empty(0)
    if values.size != tensor.dims[0] * tensor.dims[1]:
        return None
    return values.reshape(tensor.dims).astype(np.float64)
