"""A GGUF file: its metadata by key, and its tensors, mapped from the disk until they are read.

The header is parsed here, by llama.cpp's rules (ggml/src/gguf.cpp), because the GGUFReader of the
`gguf` package has no clear errors for files that are cut short, hostile, big-endian or newer than
the package. The package dequantizes the tensors. Knows nothing of the meaning of the keys.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

from gptx.errors import CheckpointError
from gptx_models.checkpoints.read_files import check_file

# GGUF's number of a scalar type -> its code in `struct`
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_UINT32, _STRING, _ARRAY = 4, 8, 9
_MOST_DIMENSIONS = 4
_COPY_AGAIN = "copy or download it again"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as it is stored.

    shape: in PyTorch's order, rows first. data: the bytes of each row, (..., bytes of a row).
    """

    name: str
    type: GGMLQuantizationType
    shape: tuple[int, ...]
    data: np.ndarray[Any, np.dtype[np.uint8]]

    def values(self, where: str) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The tensor in fp32. `where` names the file in messages.

        Raises CheckpointError for a type that the gguf package does not dequantize.
        """
        try:
            return np.array(dequantize(self.data, self.type), dtype=np.float32).reshape(self.shape)
        except NotImplementedError as error:
            raise CheckpointError(
                f"{where}: {self.name} is of type {self.type.name}, which the gguf package does"
                " not read"
            ) from error


def open_gguf(path: Path) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
    """(metadata by key, tensors by name) of a GGUF file. Raises CheckpointError."""
    check_file(path)
    reader = _HeaderReader(path)
    metadata = _read_metadata(reader)
    _expect_whole_model(metadata, path)
    return metadata, _read_tensors(reader, _alignment(metadata, path))


class _HeaderReader:
    """Reads a file from its start. Raises CheckpointError if the file ends before a value does.

    what: in each method, the name of the value in messages.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.raw, self.at = path, np.memmap(path, mode="r"), 0
        self.view = self.raw.data
        if self.take(4, "its first bytes") != b"GGUF":
            raise CheckpointError(f"{path} is not a GGUF file: {_COPY_AGAIN}")
        version = self.number("I", "its version")
        if version & 0xFFFF == 0:  # llama.cpp's test for the other byte order
            raise CheckpointError(
                f"{path} is a big-endian GGUF file, made for machines such as IBM Z, and gptx reads"
                " little-endian ones, as llama.cpp does on this machine: take the little-endian"
                " file, or convert it with gguf-py's gguf_convert_endian.py"
            )
        if version not in (2, 3):
            raise CheckpointError(f"{path} is of version {version} of GGUF, expected 2 or 3")
        self.n_tensors, self.n_keys = self.number("Q", "the counts"), self.number("Q", "the counts")

    def take(self, size: int, what: str) -> bytes:
        """The next `size` bytes."""
        if size > len(self.raw) - self.at:
            raise CheckpointError(
                f"{self.path} is not a whole GGUF file: it ends in {what}, {len(self.raw):,} bytes"
                f" from its start: {_COPY_AGAIN}"
            )
        self.at += size
        return bytes(self.view[self.at - size : self.at])

    def number(self, code: str, what: str) -> int:
        """The next number, of the type with this code in `struct`."""
        return struct.unpack(f"<{code}", self.take(struct.calcsize(code), what))[0]

    def text(self, what: str) -> str:
        """The next text: its length in 8 bytes, then UTF-8."""
        raw = self.take(self.number("Q", what), what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(
                f"{self.path}: {what} is not UTF-8 text: byte {error.start} of it: {_COPY_AGAIN}"
            ) from error


def _read_metadata(header: _HeaderReader) -> dict[str, Any]:
    """The metadata by key."""
    metadata: dict[str, Any] = {}
    for _ in range(header.n_keys):
        key = header.text("the name of a key")
        if key in metadata:
            raise CheckpointError(f"{header.path} has the key {key} twice")
        kind = header.number("I", key)
        metadata[key] = _array(header, key) if kind == _ARRAY else _value(header, kind, key)
        if key == "general.alignment" and kind != _UINT32:
            raise CheckpointError(
                f"{header.path}: general.alignment is of type {kind}, expected {_UINT32} (uint32)"
            )
    return metadata


def _value(header: _HeaderReader, kind: int, key: str) -> Any:
    if kind == _STRING:
        return header.text(key)
    if kind not in _SCALARS:
        raise CheckpointError(
            f"{header.path}: {key} is of type {kind}, which no version of GGUF has"
        )
    return header.number(_SCALARS[kind], key)


def _array(header: _HeaderReader, key: str) -> list[Any]:
    kind, count = header.number("I", key), header.number("Q", key)
    if kind == _STRING:
        return [header.text(key) for _ in range(count)]
    if kind not in _SCALARS:
        what = "a list of lists" if kind == _ARRAY else f"a list of type {kind}"
        raise CheckpointError(
            f"{header.path}: {key} is {what}, expected a list of numbers or texts"
        )
    code = _SCALARS[kind]
    return np.frombuffer(
        header.take(count * struct.calcsize(code), key), f"<{np.dtype(code).str[1:]}"
    ).tolist()


def _expect_whole_model(metadata: dict[str, Any], path: Path) -> None:
    """Raise CheckpointError for one part of a split model, an adapter, or another kind of file."""
    parts = metadata.get("split.count", 1)
    if parts not in (0, 1):
        raise CheckpointError(
            f"{path} is one of {parts} parts: join them first with "
            "llama.cpp's `llama-gguf-split --merge FIRST_PART OUT.gguf`"
        )
    kind = metadata.get("general.type", "model")
    if kind == "adapter":
        raise CheckpointError(
            f"{path} is a LoRA adapter in GGUF: merge it into its model first, with llama.cpp's"
            " `llama-export-lora`"
        )
    if kind != "model":
        raise CheckpointError(f"{path}: general.type is {kind!r:.80}, expected a model")


def _alignment(metadata: dict[str, Any], path: Path) -> int:
    """The alignment of tensors: each offset is a multiple of this number of bytes."""
    alignment = metadata.get("general.alignment", 32)
    if alignment < 1 or alignment & (alignment - 1):
        raise CheckpointError(f"{path}: general.alignment is {alignment}, expected a power of two")
    return alignment


def _read_tensors(header: _HeaderReader, alignment: int) -> dict[str, StoredTensor]:
    """The tensors by name. Their list follows the metadata; their bytes follow the list."""
    found: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(header.n_tensors):
        name = header.text("the name of a tensor")
        if name in found:
            raise CheckpointError(f"{header.path} has the tensor {name} twice")
        dimensions = header.number("I", name)
        if dimensions > _MOST_DIMENSIONS:
            raise CheckpointError(
                f"{header.path}: {name} has {dimensions} dimensions, expected at most"
                f" {_MOST_DIMENSIONS}"
            )
        shape = tuple(reversed([header.number("Q", name) for _ in range(dimensions)]))
        found[name] = (shape, header.number("I", name), header.number("Q", name))
    start = -(-header.at // alignment) * alignment
    return {
        name: _tensor(header, name, *entry, start=start, alignment=alignment)
        for name, entry in found.items()
    }


def _tensor(
    header: _HeaderReader,
    name: str,
    shape: tuple[int, ...],
    number: int,
    offset: int,
    *,
    start: int,
    alignment: int,
) -> StoredTensor:
    """The tensor of an entry in the list. Raises CheckpointError if it does not fit the file.

    number: GGUF's number of the tensor's type. offset: in bytes, counted from byte `start`.
    """
    where = header.path
    kind, block, size = _type(number, f"{where}: {name}")
    *outer, width = shape or (1,)
    if width % block:
        raise CheckpointError(
            f"{where}: {name} is {list(shape)} in {kind.name}, whose rows have a multiple of"
            f" {block} weights"
        )
    row = width // block * size
    total = row * math.prod(outer)
    if offset % alignment:
        raise CheckpointError(
            f"{where}: {name} begins at {offset:,}, which is no multiple of the alignment,"
            f" {alignment}"
        )
    if start + offset + total > len(header.raw):
        raise CheckpointError(
            f"{where} is not a whole GGUF file: {name} ends at byte {start + offset + total:,}, and"
            f" the file has {len(header.raw):,}: {_COPY_AGAIN}"
        )
    data = header.raw[start + offset : start + offset + total]
    return StoredTensor(name, kind, shape, data.reshape(*outer, row))


def _type(number: int, what: str) -> tuple[GGMLQuantizationType, int, int]:
    """(the type, weights in a block, bytes of a block). `what` names the tensor in messages."""
    try:
        kind = GGMLQuantizationType(number)
        return kind, *GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise CheckpointError(
            f"{what} is of type {number}, which is unknown to the installed gguf package: update it"
            " with `pip install -U gguf`, or write the file anew in a known type with llama.cpp's"
            " llama-quantize"
        ) from None
