"""Bytes of a model's weights, and how many of them one token reads: a file or folder in.

Of a table that is looked up, a token reads one row: of position tables, and of an embedding that is
not also the head. Of all other weights it reads every byte. ONNX graphs and safetensors files show
which tensors are such tables. In other files all bytes count as read.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from gptx.artifact.layout import REFERENCE
from gptx.artifact.onnx_file import Node, read_onnx

GRAPHS = ("onnx/model.onnx", "model.onnx")
# TensorProto.DataType -> bits of one element
BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 16: 16}
BITS |= {17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2}
# operator -> inputs that are tables, of which a token reads a row
LOOKED_UP = {"Gather": {0}, "GatherBlockQuantized": {0, 2, 3}, "RotaryEmbedding": {1, 2, 3}}
LOOKED_UP |= {"GroupQueryAttention": {7, 8}}
# Names in checkpoints: embeddings of tokens and positions, and heads that are tensors of their own
TABLES = (
    "embed_tokens.weight",
    "wte.weight",
    "wpe.weight",
    "embed_in.weight",
    "word_embeddings.weight",
)
HEADS = ("lm_head.weight", "embed_out.weight")


@dataclass(frozen=True)
class Weights:
    """Bytes of a model's weights."""

    stored: int
    read: int  # by one token


def weights_of(path: Path, dtype: str | None = None) -> Weights:
    """Measure the model in a file or folder.

    dtype: the type in which an engine holds a checkpoint; float32 unless it is a 16-bit type.
    """
    checkpoint = [file for file in path.glob("*.safetensors") if file.name != REFERENCE]
    if checkpoint:
        return _of_checkpoint(checkpoint, 16 if dtype in ("bfloat16", "float16") else 32)
    graph = next((path / name for name in GRAPHS if (path / name).exists()), None)
    if graph is not None:
        return _of_graph(graph)
    every = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    weights = [file for file in every if file.suffix == ".bin" and "tokenizer" not in file.name]
    size = sum(file.stat().st_size for file in weights or every)
    return Weights(size, size)


def read_files(path: Path) -> None:
    """Read every file once, so that all engines find them in the page cache."""
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
            sizes |= {
                name: math.prod(opened.get_slice(name).get_shape()) * bits // 8
                for name in opened.keys()  # noqa: SIM118
            }
    untied = any(name.endswith(HEADS) for name in sizes)
    unread = sum(
        size
        for name, size in sizes.items()
        # Without a head of its own, a model uses the embedding as its head, which reads all of it.
        if name.endswith("wpe.weight") or (untied and name.endswith(TABLES))
    )
    return Weights(sum(sizes.values()), sum(sizes.values()) - unread)


def _of_graph(file: Path) -> Weights:
    graph = read_onnx(file)
    tensors = [tensor for tensor in graph.tensors if tensor.name]  # others are nodes' constants
    sizes = {
        tensor.name: math.prod(tensor.dims) * BITS.get(tensor.kind, 32) // 8 for tensor in tensors
    }
    rows = {tensor.name: tensor.dims[0] if tensor.dims else 1 for tensor in tensors}
    outside = {tensor.outside["location"] for tensor in tensors if "location" in tensor.outside}
    whole = set().union(*(_read_whole(node) for node in graph.nodes))
    stored = file.stat().st_size + sum((file.parent / name).stat().st_size for name in outside)
    read = sum(
        size if name in whole else size // max(rows[name], 1) for name, size in sizes.items()
    )
    return Weights(stored, read)


def _read_whole(node: Node) -> set[str]:
    rows_only = LOOKED_UP.get(node.operator, set())
    return {name for place, name in enumerate(node.inputs) if place not in rows_only}
