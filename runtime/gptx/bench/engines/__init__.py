"""One file an engine, of the name that it has on the command line; each says what it is in ENGINE.

Importing a file here imports no library of others: `start` does, in the process that is measured.
"""

from __future__ import annotations

import importlib
import pkgutil

from gptx.bench.engine import Engine


def names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def named(name: str) -> Engine:
    return importlib.import_module(f"{__name__}.{name}").ENGINE
