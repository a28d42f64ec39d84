"""JSON out of files and lines: the value, or one sentence that names the place and the fault.

Everything that gptx reads as JSON is read here, so that no file can end a command with a traceback. Does not know what the
values mean.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from gptx.artifact.folders import LFS_POINTER
from gptx.errors import ArtifactError, GptxError

MOST_DEEP = 100  # levels of brackets; json.dumps fails at about a thousand, far from the file that is at fault
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(
    path: Path, error: type[GptxError], *, optional: bool = False, advice: str = ""
) -> dict[str, Any]:
    """The JSON object in a file. `optional`: {} where there is no such file. `advice` ends the messages.

    Raises `error`.
    """
    advice = f": {advice}" if advice else ""
    try:
        if not path.is_file() and path.exists():  # a pipe or a device might never end
            raise error(f"{path} is not a file{advice}")
        raw = path.read_bytes()
    except FileNotFoundError:
        if optional:
            return {}
        raise error(f"{path} does not exist{advice}") from None
    except (OSError, ValueError) as fault:  # ValueError: a NUL in the name
        raise error(
            f"cannot read {path}: {getattr(fault, 'strerror', None) or fault}{advice}"
        ) from fault
    if raw.startswith(LFS_POINTER):
        raise error(f"{path} is a Git LFS pointer: run git lfs pull in that clone")
    if not raw:
        raise error(f"{path} is empty{advice or ': copy or download it again'}")
    value = parse_json(raw, str(path), error, advice=advice)
    if not isinstance(value, dict):
        raise error(f"{path} holds a JSON {json_kind(value)}, expected an object{advice}")
    return value


def parse_json(text: str | bytes, where: str, error: type[GptxError], *, advice: str = "") -> Any:
    """The value that `text` writes; `where` names it in messages, `advice` ends them. Raises `error`.

    Refuses what Python's reader takes and no writer can give back: half surrogate pairs, and brackets in brackets without
    end.
    """
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        value = json.loads(text)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as fault:
        bad = fault.object[fault.start]
        raise error(f"{where} is not UTF-8 text: byte {fault.start} is {bad:#x}{advice}") from fault
    except UnicodeEncodeError as fault:
        half = fault.object[fault.start]
        raise error(
            f"{where} holds half a surrogate pair ({half!a}), which is no text{advice}"
        ) from fault
    except json.JSONDecodeError as fault:
        at = (
            f"column {fault.colno}"
            if fault.lineno == 1
            else f"line {fault.lineno}, column {fault.colno}"
        )
        raise error(f"{where} is not JSON: {fault.msg} ({at}){advice}") from fault
    except RecursionError:
        raise error(_too_deep(where, advice)) from None
    except ValueError as fault:  # a number of thousands of digits
        raise error(f"{where} is not JSON that can be read: {fault}{advice}") from fault
    if text.count("[") + text.count("{") > MOST_DEEP and _deeper(value, MOST_DEEP):
        raise error(_too_deep(where, advice))
    return value


def json_kind(value: Any) -> str:
    """What JSON calls a value."""
    names = {
        dict: "object",
        list: "list",
        str: "text",
        bool: "boolean",
        int: "number",
        float: "number",
    }
    return names.get(type(value), "null")


def a_json_kind(value: Any) -> str:
    """The same with its article: "an object", "a list"."""
    kind = json_kind(value)
    return f"an {kind}" if kind == "object" else f"a {kind}"


def _too_deep(where: str, advice: str) -> str:
    return f"{where} is not JSON that can be read: more than {MOST_DEEP} brackets stand in each other{advice}"


def _deeper(value: Any, most: int) -> bool:
    level = [value]
    for _ in range(most):
        inner = (
            part
            for whole in level
            for part in (whole.values() if isinstance(whole, dict) else whole)
        )
        level = [part for part in inner if isinstance(part, dict | list)]
        if not level:
            return False
    return True


def read_side_file(path: Path) -> dict[str, Any]:
    """A JSON object that stands beside an artifact's graph, {} where there is no such file. Raises ArtifactError."""
    return read_json(path, ArtifactError, optional=True, advice="copy the artifact again")
