"""Read records from JSONL, JSON, CSV or TSV files, which may be compressed.

Each record comes with its place (file and line) for messages. Knows no tasks.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gptx.artifact.json_files import json_kind, parse_json
from gptx.errors import UsageError
from gptx_models.data.compressed_text import Read, file_type, lines, pieces, split_stream

Record = dict[str, Any]
RECORDS = (".jsonl", ".json", ".csv", ".tsv")


def records(file: Path, read: Read | None = None) -> Iterator[tuple[str, Record]]:
    """The (place, record) pairs of a file; its suffix decides how it is read.

    read: called with the number of bytes read since its last call.
    Raises UsageError, which names the file and the line or record that cannot be read.
    """
    kind = file_type(file)
    if kind == ".jsonl":
        return json_lines(file, read)
    if kind == ".json":
        return json_list(file, read)
    return table(file, "\t" if kind == ".tsv" else ",", read)


def json_lines(file: Path, read: Read | None = None) -> Iterator[tuple[str, Record]]:
    """One JSON object per line; blank lines are skipped."""
    for number, line in lines(file, read):
        place = f"{file}, line {number}"
        yield place, _object(_parsed(line, place), place)


def json_list(file: Path, read: Read | None = None) -> Iterator[tuple[str, Record]]:
    """One JSON list of objects, which is held in memory as a whole."""
    text = "".join(pieces(file, read))
    if not text.strip():
        return
    value = _parsed(text, str(file))
    if not isinstance(value, list):
        raise UsageError(f"{file} is a JSON {json_kind(value)}: a list of records is expected")
    for number, record in enumerate(value, 1):
        place = f"{file}, record {number}"
        yield place, _object(record, place)


def table(file: Path, delimiter: str, read: Read | None = None) -> Iterator[tuple[str, Record]]:
    """CSV whose first line names the fields. Quoted fields may hold line ends."""
    csv.field_size_limit(2**31 - 1)  # for the whole process; the default is 128 KB
    rows = csv.reader(
        (f"{line}\n" for line in split_stream(pieces(file, read), "\n")),
        delimiter=delimiter,
        strict=True,
    )
    header: list[str] = []
    while True:
        place = f"{file}, line {rows.line_num + 1}"
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise UsageError(
                f"{place} is broken: {error}; a quote in a quoted field is doubled"
            ) from error
        if row is None:
            return
        if not any(row):
            continue
        if not header:
            header = row
            if len(set(header)) < len(header) or not all(header):
                raise UsageError(
                    f"{place} must name every field, each once; it is {', '.join(header)}"
                )
        elif len(row) != len(header):
            raise UsageError(
                f"{place} has {len(row)} fields, and the first line names {len(header)}"
            )
        else:
            yield place, dict(zip(header, row))


def _parsed(text: str, place: str) -> Any:
    try:
        return parse_json(text, place, UsageError)
    except UsageError as error:
        if "Extra data (line" in str(error):
            raise UsageError(f"{error}; a file with a record a line is a .jsonl") from error
        raise


def _object(record: Any, place: str) -> Record:
    if not isinstance(record, dict):
        raise UsageError(
            f"{place} is a JSON {json_kind(record)}: an object is expected, such as {{...}}"
        )
    return record
