"""The errors that gptx raises, with their docstrings, made from gptx.errors."""

from __future__ import annotations

import inspect

from generator.markdown import escaped, table
from gptx import errors


def page() -> str:
    classes = [
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if kind.__module__ == errors.__name__
    ]
    classes.sort(key=lambda kind: inspect.getsourcelines(kind)[1])
    rows = [(f"`{kind.__name__}`", _bases(kind), _says(kind)) for kind in classes]
    return table(["class", "is also", "when"], rows)


def _bases(kind: type) -> str:
    return ", ".join(f"`{base.__name__}`" for base in kind.__bases__)


def _says(kind: type) -> str:
    return escaped(" ".join((inspect.getdoc(kind) or "").split()))
