"""Read the fields of a protocol buffers message from its bytes.

ONNX files and SentencePiece models are such messages. The protobuf package would need a generated
module for each format and would load all weights of an ONNX file; a few lines read the few fields
that gptx needs. Format: https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

VARINT, DOUBLE, BYTES, FLOAT = 0, 1, 2, 5  # wire types


def fields_of(message: bytes | memoryview) -> Iterator[tuple[int, int, Any]]:
    """The fields of a message: (field number, wire type, value).

    The value is an integer for VARINT. For all other types it is a piece of `message`: a text, an
    inner message, or the 4 or 8 bytes of a value of fixed size. Raises ValueError if the message is
    damaged.
    """
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == VARINT:
            value, at = _varint(message, at)
            yield key >> 3, kind, value
            continue
        if kind == BYTES:
            size, at = _varint(message, at)
        elif kind in (DOUBLE, FLOAT):
            size = 8 if kind == DOUBLE else 4
        else:
            raise ValueError(f"a field has the wire type {kind}")
        if at + size > len(message):
            raise ValueError("it is cut short, or damaged")
        yield key >> 3, kind, message[at : at + size]
        at += size


def packed_varints(values: bytes | memoryview) -> Iterator[int]:
    """The integers of a packed field. Raises ValueError."""
    at = 0
    while at < len(values):
        value, at = _varint(values, at)
        yield value


def _varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """The integer that begins at `at`, and where it ends. Raises ValueError."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("it is cut short, or damaged")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number has more than ten bytes")
