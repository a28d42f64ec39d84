"""Read JSON from files and from lines of text.

The result is a value, or an error whose one sentence names the file and the fault. gptx reads here
all JSON that it did not write itself, so that no file can end a command with a traceback.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from gptx.artifact.folders import LFS_POINTER
from gptx.errors import ArtifactError, GptxError

# The deepest nesting of brackets. Python's json.dumps fails at about a thousand levels, and its
# error would not name the file.
MOST_DEEP = 100
_KINDS = {
    dict: "object",
    list: "list",
    str: "text",
    bool: "boolean",
    int: "number",
    float: "number",
}
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(
    path: Path, error: type[GptxError], *, optional: bool = False, advice: str = ""
) -> dict[str, Any]:
    """The JSON object in a file. Raises `error`, an exception class.

    optional: return {} if there is no such file. advice: what the user should do, such as "copy the
    artifact again"; every message ends with it.
    """
    advice = f": {advice}" if advice else ""
    raw = _read_bytes(path, error, advice)
    if raw is None:
        if optional:
            return {}
        raise error(f"{path} does not exist{advice}")
    if raw.startswith(LFS_POINTER):
        raise error(f"{path} is a Git LFS pointer: run git lfs pull in that clone")
    if not raw:
        raise error(f"{path} is empty{advice or ': copy or download it again'}")
    value = parse_json(raw, str(path), error, advice=advice)
    if not isinstance(value, dict):
        raise error(f"{path} holds a JSON {json_kind(value)}, expected an object{advice}")
    return value


def _read_bytes(path: Path, error: type[GptxError], advice: str) -> bytes | None:
    """The bytes of a file; None if there is no such file. Raises `error` if it cannot be read."""
    try:
        if not path.is_file() and path.exists():  # reading a pipe or a device might never end
            raise error(f"{path} is not a file{advice}")
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as fault:  # ValueError: a NUL in the name
        reason = getattr(fault, "strerror", None) or fault
        raise error(f"cannot read {path}: {reason}{advice}") from fault


def parse_json(text: str | bytes, where: str, error: type[GptxError], *, advice: str = "") -> Any:
    """The value of a JSON text. Raises `error`, an exception class.

    where: what the messages call the text. advice: the end of every message; it begins with ": ".

    Half a surrogate pair and brackets nested more than MOST_DEEP deep are refused. Python can read
    both, but may fail when it writes them.
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
            f"{where} holds half a surrogate pair ({half!a}), which is not valid text{advice}"
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
    except ValueError as fault:  # a number with more than 4,300 digits
        raise error(f"{where} is not JSON that can be read: {fault}{advice}") from fault
    if text.count("[") + text.count("{") > MOST_DEEP and _deeper(value, MOST_DEEP):
        raise error(_too_deep(where, advice))
    return value


def json_kind(value: Any) -> str:
    """What messages call a JSON value: "object", "list", "text", "boolean", "number" or "null"."""
    return _KINDS.get(type(value), "null")


def a_json_kind(value: Any) -> str:
    """json_kind with its article: "an object", "a list"."""
    kind = json_kind(value)
    return f"an {kind}" if kind == "object" else f"a {kind}"


def _too_deep(where: str, advice: str) -> str:
    return (
        f"{where} is not JSON that can be read: "
        f"brackets are nested more than {MOST_DEEP} deep{advice}"
    )


def _deeper(value: Any, most: int) -> bool:
    """True if lists and objects lie in each other more than `most` deep."""
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
    """The JSON object in an artifact's side file; {} if there is no such file.

    Raises ArtifactError.
    """
    return read_json(path, ArtifactError, optional=True, advice="copy the artifact again")
