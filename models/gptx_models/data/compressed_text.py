"""A UTF-8 file in, as it is or packed by xz, gzip or zstd; its text out, streamed in pieces or lines.

A file of any size takes a few megabytes of memory, and every fault is one UsageError. Knows nothing of what the text says.
"""

from __future__ import annotations

import codecs
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gptx.errors import UsageError

COMPRESSED = (".xz", ".gz", ".zst")
_CHUNK = 1 << 18  # bytes as they lie on disk

Read = Callable[
    [int], object
]  # is told how many bytes of the file have been read since it was last called


def file_type(file: Path) -> str:
    """.jsonl of both tales.jsonl and Tales.JSONL.xz."""
    name = Path(file.name.lower())
    return Path(name.stem).suffix if name.suffix in COMPRESSED else name.suffix


def pieces(file: Path, read: Read | None = None) -> Iterator[str]:
    """The text, some hundred thousand characters at a time; each end of a line is \\n, a byte order mark is left out."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    lines = io.IncrementalNewlineDecoder(decoder, translate=True)
    at, line, begun = 0, 1, False
    for data in _chunks(file, read, last=b""):
        pending = len(
            decoder.getstate()[0]
        )  # the first bytes of a character that the last chunk ended in
        try:
            text = lines.decode(data, final=not data)
        except UnicodeDecodeError as error:
            bad, place = error.object[error.start], at - pending + error.start
            line += error.object[: error.start].count(b"\n")
            raise UsageError(
                f"{file} is not UTF-8 text: byte {place}, in line {line}, is {bad:#x}"
            ) from error
        at += len(data)
        line += data.count(b"\n")
        if text and not begun:
            text, begun = text.removeprefix("\ufeff"), True
        yield text


def lines(file: Path, read: Read | None = None) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1. Only \\n ends one: JSON may hold the other ends raw."""
    return (
        (number, line)
        for number, line in enumerate(split_stream(pieces(file, read), "\n"), 1)
        if line.strip()
    )


def split_stream(
    pieces: Iterator[str], separator: str, *, longest: int | None = None
) -> Iterator[str]:
    """The text between separators. longest: what is longer comes in parts of about that many characters, cut after
    the end of a line."""
    begun: list[str] = []
    tail = ""  # may be the beginning of a separator
    for piece in pieces:
        *whole, rest = (tail + piece).split(separator)
        for part in whole:
            yield "".join([*begun, part])
            begun = []
        cut = max(len(rest) - len(separator) + 1, 0)
        begun.append(rest[:cut])
        tail = rest[cut:]
        if longest is not None and sum(map(len, begun)) > longest:
            text = "".join(begun)
            cut = text.rfind("\n") + 1 or len(text)
            yield text[:cut]
            begun = [text[cut:]]
    yield "".join([*begun, tail])


def _chunks(file: Path, read: Read | None, *, last: bytes) -> Iterator[bytes]:
    """The file's bytes, unpacked, and `last` when they have ended."""
    try:
        with open(file, "rb") as source:
            packed = iter(lambda: source.read(_CHUNK), b"")
            data = packed if file.suffix.lower() not in COMPRESSED else _unpacked(packed, file)
            told = 0
            for chunk in data:
                yield chunk
                if read is not None:
                    read(source.tell() - told)
                    told = source.tell()
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from error
    yield last


def _unpacked(packed: Iterator[bytes], file: Path) -> Iterator[bytes]:
    """Every stream of the file: xz -T, gzip and zstd may write several, and `cat` joins them."""
    kind = file.suffix.lower()
    begin, fault = _unpacker(kind)
    stream = None
    for data in packed:
        unpacked: list[bytes] = []
        while data := data if stream else data.lstrip(b"\0"):  # zeros fill blocks between streams
            stream = stream or begin()
            try:
                unpacked.append(stream.decompress(data))
            except fault as error:
                raise UsageError(f"{file} is broken, or no {kind} file: {error}") from error
            data = stream.unused_data
            if stream.eof:
                stream = None
        yield b"".join(unpacked)
    if stream is not None:
        raise UsageError(
            f"{file} is broken: it ends in the middle, as a download that stopped does"
        )


def _unpacker(kind: str) -> tuple[Callable[[], Any], type[Exception]]:
    """What makes a decompressor, each of which has decompress, eof and unused_data, and what it raises."""
    if kind == ".xz":
        return lzma.LZMADecompressor, lzma.LZMAError
    if kind == ".gz":
        return lambda: zlib.decompressobj(wbits=31), zlib.error
    import zstandard

    opened = zstandard.ZstdDecompressor(max_window_size=1 << 31)  # as zstd --long=31 writes
    return opened.decompressobj, zstandard.ZstdError
