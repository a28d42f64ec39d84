"""A file of records in; the records out, one after another, each with its place for a message. What they mean, it does not
know."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gptx.errors import UsageError
from gptx_models.packed_text import Read, lines

Record = dict[str, Any]
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def json_lines(file: Path, read: Read | None = None) -> Iterator[tuple[str, Record]]:
    """A JSON object a line; blank lines are passed over. UsageError names the file and the line that is none."""
    for number, line in lines(file, read):
        place = f"{file}, line {number}"
        yield place, _object(_parsed(line, place), place)


def _parsed(text: str, place: str) -> Any:
    try:
        value = json.loads(text)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except json.JSONDecodeError as error:
        at = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise UsageError(f"{place} is not JSON: {error.msg} ({at})") from error
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{place} holds half a surrogate pair ({error.object[error.start]!a}), which is no text"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise UsageError(f"{place} is not JSON that can be read: {error}") from error


def _object(record: Any, place: str) -> Record:
    if not isinstance(record, dict):
        raise UsageError(f"{place} is a JSON {kind(record)}: an object is expected, such as {{...}}")
    return record


def kind(value: Any) -> str:
    """What JSON calls a value."""
    names = {dict: "object", list: "list", str: "text", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")
