"""Plain text as Markdown: the signs that Markdown and HTML would read otherwise are escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_SIGNS = re.compile(r"([\\*_\[\]|#])")


def escaped(text: str) -> str:
    """Text that is shown as it is written; what stands in backticks stays code."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else _plain(part) for part in parts)


def _plain(text: str) -> str:
    return _SIGNS.sub(r"\\\1", text).replace("<", "&lt;").replace(">", "&gt;")


def definition(term: str, text: str) -> str:
    """An entry of a definition list: the term as code, the text below it."""
    return f"`{term}`\n:   {text}\n"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
