"""Read the documents of text files one after another, so that texts may be larger than memory.

A path is a text (documents are separated by <|endoftext|>), a JSONL file (one document per line, in
a field), or a folder of both. Each file may be compressed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from gptx.artifact.json_files import a_json_kind
from gptx.errors import UsageError
from gptx_models.checkpoints.text_setup import END_OF_TEXT
from gptx_models.data.compressed_text import COMPRESSED, Read, file_type, pieces, split_stream
from gptx_models.data.record_files import json_lines

TEXTS = (".txt", ".md", ".jsonl")
LONGEST = 1 << 23  # characters; a longer document is divided into several


def documents(
    paths: Sequence[Path], *, field: str = "text", read: Read | None = None
) -> Iterator[str]:
    """The documents that are not blank.

    field: the field of a JSONL record that holds the text. read: called with the number of bytes
    read since its last call, before decompression; they sum to the size of all files. Raises
    UsageError, which names the file and the line that cannot be read.
    """
    found = False
    for file in list_files(paths):
        for document in _documents_of(file, field, read):
            if document.strip():
                found = True
                yield document
    if not found:
        raise UsageError(f"there is no text in {', '.join(map(str, paths))}")


def list_files(paths: Sequence[Path], *, kinds: Sequence[str] = TEXTS) -> list[Path]:
    """The files among `paths`, and those in the folders at any depth, sorted by name.

    Hidden files and files of other kinds are left out in folders. A path that is named twice counts
    twice. Raises UsageError for a path that is missing or of another kind, and for a folder without
    a file to read.
    """
    files: list[Path] = []
    known = f"{', '.join(kinds)}, or one of these with {', '.join(COMPRESSED)}"
    for path in paths:
        if path.is_dir():
            inside = sorted(
                file.relative_to(path) for file in path.rglob("*") if file_type(file) in kinds
            )
            shown = [
                path / file
                for file in inside
                if not any(part.startswith(".") for part in file.parts)
            ]
            if not (shown := [file for file in shown if file.is_file()]):
                raise UsageError(f"{path} is a folder without a file to read: {known} is expected")
            files += shown
        elif not path.exists():
            raise UsageError(f"{path} is missing: a file or a folder is expected")
        elif file_type(path) not in kinds:
            raise UsageError(f"{path} is of an unknown kind: {known} is expected")
        else:
            files.append(path)
    return files


def _documents_of(file: Path, field: str, read: Read | None) -> Iterator[str]:
    if file_type(file) == ".jsonl":
        for place, record in json_lines(file, read):
            if field not in record:
                raise UsageError(
                    f"{place} has no field {field}; it has {', '.join(record) or 'none'}"
                )
            if not isinstance(text := record[field], str):
                raise UsageError(
                    f"{place}: the field {field} is {a_json_kind(text)}, text is expected"
                )
            yield text
    else:
        yield from split_stream(pieces(file, read), END_OF_TEXT, longest=LONGEST)
