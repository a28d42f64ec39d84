"""Read the fields of a protocol buffers message from its bytes.

Written here because a SentencePiece model needs only three message types. The protobuf package
would need the generated module of the sentencepiece package, and gptx depends on neither. Format:
https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types


def message_fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of each field of a message.

    A value is a number, or bytes: a text, an inner message, or the 4 or 8 bytes of a value of fixed
    size. Raises ValueError or IndexError if the message is damaged.
    """
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at)
        number, wire_type = key >> 3, key & 7
        if wire_type == _VARINT:
            value, at = _varint(raw, at)
            yield number, value
            continue
        if wire_type == _BYTES:
            size, at = _varint(raw, at)
        elif wire_type in (_FIXED64, _FIXED32):
            size = 8 if wire_type == _FIXED64 else 4
        else:
            raise ValueError(f"a field of unknown kind {wire_type}")
        if size > len(raw) - at:
            raise ValueError("it is cut short")
        yield number, raw[at : at + size]
        at += size


def as_bytes(value: int | bytes) -> bytes:
    """The value, which must be bytes. Raises ValueError."""
    if not isinstance(value, bytes):
        raise ValueError("a number where bytes are expected")
    return value


def as_int(value: int | bytes) -> int:
    """The value, which must be a number. Raises ValueError."""
    if not isinstance(value, int):
        raise ValueError("bytes where a number is expected")
    return value


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """(the number at byte `at`, the position behind it). 7 bits a byte, the lowest first."""
    value = 0
    for shift in range(0, 70, 7):
        byte = raw[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number that does not end")
