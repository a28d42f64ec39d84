"""How many bytes of weights a model has, and how many of them one token reads: a file or folder in, Weights out.

All are read but the rows of tables that are only looked up: an embedding that no head shares, positions. In an ONNX
graph and in safetensors these are known; of other files all bytes count as read. The graph is read as the protocol
buffer that it is, as the runtime has no onnx.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptx.reference import FILE

GRAPHS = ("onnx/model.onnx", "model.onnx")
# bits by TensorProto.DataType
BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 16: 16}
BITS |= {17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2}
# inputs of which a token takes a row
LOOKED_UP = {"Gather": {0}, "GatherBlockQuantized": {0, 2, 3}, "RotaryEmbedding": {1, 2, 3}}
LOOKED_UP |= {"GroupQueryAttention": {7, 8}}
TABLES = ("embed_tokens.weight", "wte.weight", "wpe.weight", "embed_in.weight", "word_embeddings.weight")
HEADS = ("lm_head.weight", "embed_out.weight")


@dataclass(frozen=True)
class Weights:
    stored: int
    read: int  # by a token


def weights_of(path: Path, dtype: str | None = None) -> Weights:
    """`dtype`: what the weights of a checkpoint are computed in, where they are not left as they are."""
    checkpoint = [file for file in path.glob("*.safetensors") if file.name != FILE]
    if checkpoint:
        return _of_checkpoint(checkpoint, 16 if dtype in ("bfloat16", "float16") else 32)
    graph = next((path / name for name in GRAPHS if (path / name).exists()), None)
    if graph is not None:
        return _of_graph(graph)
    every = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    weights = [file for file in every if file.suffix == ".bin" and "tokenizer" not in file.name]
    size = sum(file.stat().st_size for file in weights or every)
    return Weights(size, size)


def warm(path: Path) -> None:
    """Read every file, so that none of the engines finds them on the disk."""
    for file in [path] if path.is_file() else path.rglob("*"):
        if file.is_file() and os.access(file, os.R_OK):
            with file.open("rb", buffering=0) as opened:
                while opened.read(1 << 24):
                    pass


def _of_checkpoint(files: list[Path], bits: int) -> Weights:
    from safetensors import safe_open

    sizes: dict[str, int] = {}
    for file in files:
        with safe_open(file, "numpy") as opened:
            sizes |= {name: math.prod(opened.get_slice(name).get_shape()) * bits // 8 for name in opened.keys()}  # noqa: SIM118
    untied = any(name.endswith(HEADS) for name in sizes)
    unread = sum(
        size
        for name, size in sizes.items()
        if name.endswith("wpe.weight") or (untied and name.endswith(TABLES))  # a tied table is the head, too
    )
    return Weights(sum(sizes.values()), sum(sizes.values()) - unread)


def _of_graph(file: Path) -> Weights:
    with file.open("rb") as opened:  # mapped: small graphs have their weights inside
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    sizes, rows, outside, whole = _initializers(memoryview(mapped))
    stored = file.stat().st_size + sum((file.parent / name).stat().st_size for name in outside)
    read = sum(size if name in whole else size // max(rows[name], 1) for name, size in sizes.items())
    return Weights(stored, read)


def _initializers(model: memoryview) -> tuple[dict[str, int], dict[str, int], set[str], set[str]]:
    """Of each its bytes and its rows; the files beside the graph; the names of those that are read whole."""
    sizes: dict[str, int] = {}
    rows: dict[str, int] = {}
    outside: set[str] = set()
    whole: set[str] = set()
    for field, graph in _fields(model):
        if field != 7:  # ModelProto.graph
            continue
        for part, value in _fields(graph):
            if part == 1:  # node
                whole |= _read_whole(value)
            elif part == 5:  # initializer
                name, dims, bits, location = _tensor(value)
                sizes[name], rows[name] = math.prod(dims) * bits // 8, dims[0] if dims else 1
                outside |= {location} if location else set()
    return sizes, rows, outside, whole


def _read_whole(node: memoryview) -> set[str]:
    inputs: list[str] = []
    operator = ""
    for field, value in _fields(node):
        if field == 1:
            inputs.append(str(value, "utf-8"))
        elif field == 4:
            operator = str(value, "utf-8")
    rows_only = LOOKED_UP.get(operator, set())
    return {name for place, name in enumerate(inputs) if place not in rows_only}


def _tensor(tensor: memoryview) -> tuple[str, list[int], int, str]:
    name, dims, bits, location = "", [], 32, ""
    for field, value in _fields(tensor):
        if field == 1:
            dims += [value] if isinstance(value, int) else list(_packed(value))
        elif field == 2:
            bits = BITS.get(value, 32)
        elif field == 8:
            name = str(value, "utf-8")
        elif field == 13:  # external_data: a key and a value
            key, text = (str(part, "utf-8") for _, part in _fields(value))
            location = text if key == "location" else location
    return name, dims, bits, location


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a protocol buffer: integers, and bytes for everything that has a length."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
        elif kind == 2:
            size, at = _varint(message, at)
            yield key >> 3, message[at : at + size]
            at += size
        else:
            at += {1: 8, 5: 4}[kind]


def _packed(values: memoryview) -> Iterator[int]:
    at = 0
    while at < len(values):
        value, at = _varint(values, at)
        yield value


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
