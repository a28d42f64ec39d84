"""The engines: one file each, named as on the command line, with an Engine called ENGINE.

Importing these files imports no engine. `ENGINE.start` does, in the process that is measured.
"""

from __future__ import annotations

import importlib
import pkgutil

from gptx.bench.engine import Engine


def names() -> list[str]:
    """Names of all engines, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def named(name: str) -> Engine:
    """The engine of that name, one of `names()`."""
    return importlib.import_module(f"{__name__}.{name}").ENGINE
