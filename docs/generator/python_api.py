"""The reference of the Python API, made from `gptx.__all__`: signatures and docstrings."""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Iterator
from typing import Any

import gptx
from generator.markdown import escaped

ORDER = ["load", "Model", "Completion", "Stream", "Stats", "Session", "Chat"]  # then the rest
WIDTH = 88
# Members that other rooms of gptx use, and no app
INTERNAL = {"stream_ids", "resolve_options", "need_chat", "takes_positions"}
INTERNAL |= {"has_news", "is_read_elsewhere", "results"}


def page() -> str:
    names = [name for name in gptx.__all__ if not _is_error(name) and name != "__version__"]
    ordered = sorted(names, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    return "\n".join(_entry(name, getattr(gptx, name)) for name in ordered)


def _is_error(name: str) -> bool:
    value = getattr(gptx, name)
    return inspect.isclass(value) and issubclass(value, Exception | Warning)


def _entry(name: str, value: Any) -> str:
    if not inspect.isclass(value):
        return f"## gptx.{name}\n\n{_code(signature(name, value))}\n{_doc(value)}"
    parts = [f"## gptx.{name}\n"]
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        parts.append(_code("\n".join(f"{field.name}: {field.type}" for field in fields)))
    parts.append(_doc(value))
    parts += [_member(name, key, member) for key, member in _members(value)]
    return "\n".join(parts)


def _members(kind: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties of a class and its bases in gptx, in the order of the code."""
    seen = set()
    for base in kind.__mro__:
        if not base.__module__.startswith("gptx"):
            continue
        for key, member in vars(base).items():
            public = isinstance(member, property | classmethod | types.FunctionType)
            shown = public and not key.startswith("_") and key not in {*seen, *INTERNAL}
            if shown and _is_documented(member):
                seen.add(key)
                yield key, member


def _is_documented(member: Any) -> bool:
    return bool(inspect.getdoc(member))


def _member(owner: str, key: str, member: Any) -> str:
    title = f"### {owner}.{key}\n"
    if isinstance(member, property):
        returns = member.fget.__annotations__.get("return", "")
        return f"{title}\n{_code(f'{key}: {returns}')}\n{_doc(member)}"
    function = member.__func__ if isinstance(member, classmethod) else member
    return f"{title}\n{_code(signature(key, function))}\n{_doc(member)}"


def signature(name: str, function: Any) -> str:
    """`name(a, *, b=1) -> int`, a parameter a line where it does not fit into one."""
    found = inspect.signature(function)
    words, starred = [], False
    for one in found.parameters.values():
        if one.name in ("self", "cls"):
            continue
        if one.kind is one.KEYWORD_ONLY and not starred:
            words.append("*")
            starred = True
        star = {one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}.get(one.kind, "")
        kind = "" if one.annotation is one.empty else f": {one.annotation}"
        default = "" if one.default is one.empty else f" = {one.default!r}"
        words.append(f"{star}{one.name}{kind}{default}")
    end = "" if found.return_annotation is found.empty else f" -> {found.return_annotation}"
    line = f"{name}({', '.join(words)}){end}"
    return line if len(line) <= WIDTH else f"{name}(\n    " + ",\n    ".join(words) + f",\n){end}"


def _code(text: str) -> str:
    return f"```python\n{text}\n```\n"


def _doc(value: Any) -> str:
    """A docstring's paragraphs; a list in it stays a list, and indented lines stay code."""
    return (
        "\n\n".join(_paragraph(part) for part in (inspect.getdoc(value) or "").split("\n\n")) + "\n"
    )


def _paragraph(text: str) -> str:
    lines = text.split("\n")
    if all(line.startswith("    ") for line in lines):
        return text
    first = next((i for i, line in enumerate(lines) if line.startswith("- ")), None)
    if first is None:
        return escaped(" ".join(lines))
    head, items = " ".join(lines[:first]), lines[first:]
    return "\n".join(
        filter(None, [escaped(head), "", *map(escaped, items)]) if head else map(escaped, items)
    )
