"""Read the nodes and the stored tensors of an ONNX file.

gptx verify needs every node and tensor of an artifact's graphs, whoever made the artifact. ONNX
Runtime shows only a graph's inputs and outputs. The packages onnx and protobuf show everything, but
the runtime does not depend on them, and they load a file's weights into memory. So the file is read
here, as a protocol buffer (protobuf.py).

Only the places of the weights are read, not the weights. A damaged file, or one whose graphs nest
too deep, raises ArtifactError. The field numbers are those of onnx.proto.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptx.artifact.protobuf import VARINT, fields_of, packed_varints
from gptx.errors import ArtifactError

MOST_DEEP = 16  # levels of graphs inside the nodes of other graphs
MODEL_GRAPH, MODEL_FUNCTION = 7, 25
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_SPARSE = 1, 5, 15
FUNCTION_NODE = 7
NODE_INPUT, NODE_OUTPUT, NODE_OPERATOR, NODE_ATTRIBUTE = 1, 2, 4, 5
ATTRIBUTE_TENSORS, ATTRIBUTE_GRAPHS, ATTRIBUTE_SPARSE = (5, 10), (6, 11), (22, 23)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that the file stores. Its numbers are inside the file, or in another file.

    values: the fields of TensorProto that hold the numbers inside the file: (field number, value).
    """

    name: str
    kind: int  # TensorProto.DataType
    dims: tuple[int, ...]
    values: list[tuple[int, Any]] = field(repr=False)
    outside: dict[str, str]  # external_data: location, offset, length


@dataclass(frozen=True)
class Node:
    """A node of the graph: its operator, and the names of its inputs and outputs."""

    operator: str
    inputs: list[str]
    outputs: list[str]


@dataclass
class OnnxFile:
    """All nodes and stored tensors of a file, including those in functions, loops and branches."""

    path: Path
    nodes: list[Node] = field(default_factory=list)
    tensors: list[StoredTensor] = field(default_factory=list)


def read_onnx(path: Path) -> OnnxFile:
    """Read an ONNX file. Raises ArtifactError if it is no ONNX file, or is damaged."""
    found = OnnxFile(path)
    try:
        with path.open("rb") as opened:  # mapped, because weights may lie inside the file
            mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        for number, _, value in fields_of(memoryview(mapped)):
            if number == MODEL_GRAPH:
                _graph(found, value, 0)
            elif number == MODEL_FUNCTION:
                _nodes(found, value, FUNCTION_NODE, 0)
    except (ValueError, TypeError, OSError) as error:
        raise ArtifactError(
            f"{path} cannot be read as an ONNX graph ({error}): copy the artifact again"
        ) from error
    return found


def _graph(found: OnnxFile, graph: memoryview, depth: int) -> None:
    if depth > MOST_DEEP:
        raise ValueError(f"its graphs are nested more than {MOST_DEEP} deep")
    for number, _, value in fields_of(graph):
        if number == GRAPH_INITIALIZER:
            found.tensors.append(_tensor(value))
        elif number == GRAPH_SPARSE:
            found.tensors += _sparse(value)
    _nodes(found, graph, GRAPH_NODE, depth)


def _nodes(found: OnnxFile, graph: memoryview, node_field: int, depth: int) -> None:
    for number, _, node in fields_of(graph):
        if number != node_field:
            continue
        operator, inputs, outputs = "", [], []
        for part, _, value in fields_of(node):
            if part == NODE_INPUT:
                inputs.append(str(value, "utf-8"))
            elif part == NODE_OUTPUT:
                outputs.append(str(value, "utf-8"))
            elif part == NODE_OPERATOR:
                operator = str(value, "utf-8")
            elif part == NODE_ATTRIBUTE:
                _attribute(found, value, depth)
        found.nodes.append(Node(operator, inputs, outputs))


def _attribute(found: OnnxFile, attribute: memoryview, depth: int) -> None:
    for number, _, value in fields_of(attribute):
        if number in ATTRIBUTE_TENSORS:
            found.tensors.append(_tensor(value))
        elif number in ATTRIBUTE_GRAPHS:
            _graph(found, value, depth + 1)
        elif number in ATTRIBUTE_SPARSE:
            found.tensors += _sparse(value)


def _sparse(message: memoryview) -> list[StoredTensor]:
    return [_tensor(value) for number, _, value in fields_of(message) if number in (1, 2)]


def _tensor(tensor: memoryview) -> StoredTensor:
    name, kind, dims = "", 0, []
    values: list[tuple[int, Any]] = []
    outside: dict[str, str] = {}
    for number, wire, value in fields_of(tensor):
        if number == 1:
            dims += [value] if wire == VARINT else list(packed_varints(value))
        elif number == 2:
            kind = value
        elif number == 8:
            name = str(value, "utf-8")
        elif number == 13:  # external_data: a key and a value
            entry = {part: str(text, "utf-8") for part, _, text in fields_of(value)}
            outside[entry.get(1, "")] = entry.get(2, "")
        elif number in (4, 5, 9, 10):  # floats, int32, raw bytes, doubles
            values.append((number, value))
    return StoredTensor(name, kind, tuple(dims), values, outside)
