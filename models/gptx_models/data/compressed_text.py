"""Read a UTF-8 text file, plain or compressed (.xz, .gz, .zst), as a stream of pieces or lines.

A file of any size takes a few megabytes of memory. Every fault is a UsageError that names the file.
Knows no formats of records.
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
_CHUNK = 1 << 18  # bytes on the disk that are read at a time

# A function that is called with the number of bytes read from the file since its last call.
Read = Callable[[int], object]


def file_type(file: Path) -> str:
    """The suffix below any compression suffix, in lower case: ".jsonl" for Tales.JSONL.xz."""
    name = Path(file.name.lower())
    return Path(name.stem).suffix if name.suffix in COMPRESSED else name.suffix


def pieces(file: Path, read: Read | None = None) -> Iterator[str]:
    """The text in pieces of some hundred thousand characters.

    Every end of a line becomes \\n, and a byte order mark is left out.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    lines = io.IncrementalNewlineDecoder(decoder, translate=True)
    offset, line, begun = 0, 1, False
    for data in _chunks(file, read, last=b""):
        # the first bytes of a character that the end of the last chunk cut in two
        pending = len(decoder.getstate()[0])
        try:
            text = lines.decode(data, final=not data)
        except UnicodeDecodeError as error:
            bad, place = error.object[error.start], offset - pending + error.start
            line += error.object[: error.start].count(b"\n")
            raise UsageError(
                f"{file} is not UTF-8 text: byte {place}, in line {line}, is {bad:#x}"
            ) from error
        offset += len(data)
        line += data.count(b"\n")
        if text and not begun:
            text, begun = text.removeprefix("\ufeff"), True
        yield text


def lines(file: Path, read: Read | None = None) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1.

    Only \\n ends a line: JSON may hold the other line ends of Unicode unescaped.
    """
    return (
        (number, line)
        for number, line in enumerate(split_stream(pieces(file, read), "\n"), 1)
        if line.strip()
    )


def split_stream(
    pieces: Iterator[str], separator: str, *, longest: int | None = None
) -> Iterator[str]:
    """The parts of a text between separators; the text comes in pieces.

    longest: a longer part is divided into several of about that many characters, each cut after the
    end of a line if it has one.
    """
    begun: list[str] = []
    tail = ""  # the end of the last piece, which may be the beginning of a separator
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
    """The decompressed bytes of the file, and `last` after them."""
    try:
        with open(file, "rb") as source:
            stored = iter(lambda: source.read(_CHUNK), b"")
            is_compressed = file.suffix.lower() in COMPRESSED
            position = 0
            for chunk in _decompressed(stored, file) if is_compressed else stored:
                yield chunk
                if read is not None:
                    read(source.tell() - position)
                    position = source.tell()
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from error
    yield last


def _decompressed(stored: Iterator[bytes], file: Path) -> Iterator[bytes]:
    """The decompressed bytes of all streams in the file.

    A file may hold several streams: xz -T, gzip and zstd write them, and cat joins them. This loop
    replaces the libraries' file objects because those lose text without an error. LZMAFile (Python
    3.11) stops at padding between two streams. zstandard's stream_reader (0.25) gives nothing for a
    file that was cut off.
    """
    kind = file.suffix.lower()
    begin, fault = _decompressor(kind)
    stream = None
    for data in stored:
        found: list[bytes] = []
        while data := data if stream else data.lstrip(b"\0"):  # zeros pad the end of a stream
            stream = stream or begin()
            try:
                found.append(stream.decompress(data))
            except fault as error:
                raise UsageError(f"{file} is broken, or no {kind} file: {error}") from error
            data = stream.unused_data
            if stream.eof:
                stream = None
        yield b"".join(found)
    if stream is not None:
        raise UsageError(
            f"{file} is broken: it ends in the middle, as a download that stopped does"
        )


def _decompressor(kind: str) -> tuple[Callable[[], Any], type[Exception]]:
    """A function that makes a decompressor, and the error that the decompressor raises.

    A decompressor has decompress, eof and unused_data, as lzma.LZMADecompressor does.
    """
    if kind == ".xz":
        return lzma.LZMADecompressor, lzma.LZMAError
    if kind == ".gz":
        return lambda: zlib.decompressobj(wbits=31), zlib.error  # 31: with gzip's header
    import zstandard

    opened = zstandard.ZstdDecompressor(max_window_size=1 << 31)  # what zstd --long=31 writes
    return opened.decompressobj, zstandard.ZstdError
