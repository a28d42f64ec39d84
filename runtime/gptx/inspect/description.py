"""A Description, and the words and numbers that artifacts and checkpoints share in it."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptx.artifact.folders import everything_in
from gptx.artifact.uses import task_in_words
from gptx.parity.certificate_rows import Rows


@dataclass(frozen=True)
class Description:
    """What a folder holds: rows of (name, words) for people, and `data` for programs."""

    kind: str  # "artifact" | "checkpoint"
    facts: Rows
    files: list[tuple[str, int]]  # path relative to the folder, bytes
    certificate: Rows = field(default_factory=list)
    next: list[str] = field(default_factory=list)  # commands, the most common one last
    data: dict[str, Any] = field(default_factory=dict)


def task_rows(path: Path, n_class: int) -> Rows:
    """The task that the model was trained for; no row if there is none."""
    words = task_in_words(path, n_class)
    return [("task", words)] if words else []


def source_rows(source: dict[str, Any]) -> Rows:
    """Where the model comes from, and its licence, as far as gptx.json or the checkpoint says."""
    what = ", ".join(str(source[key]) for key in ("format", "name") if source.get(key))
    types = source.get("tensor_types")
    if isinstance(types, dict) and types:
        counted = Counter(map(str, types.values())).most_common()
        what += f"; tensors were {', '.join(f'{kind} ({n})' for kind, n in counted)}"
    rows = [("made from", what)] if what else []
    return rows + ([("licence", str(source["licence"]))] if source.get("licence") else [])


def files_in(path: Path, counts: Callable[[Path, str], bool]) -> list[tuple[str, int]]:
    """Names and sizes of the files for which counts(folder, name) is true."""
    every = [one for top in path.iterdir() for one in everything_in(top)]
    names = sorted(Path(one).relative_to(path).as_posix() for one in every)
    return [(name, (path / name).stat().st_size) for name in names if counts(path, name)]


def quoted(path: Path | str) -> str:
    """A path as it is typed in a shell."""
    return shlex.quote(str(path))


def count_in_words(n: int) -> str:
    """1500 -> 1.5k, 134515008 -> 134.5M."""
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= scale:
            return f"{n / scale:.1f}{unit}"
    return str(n)


def size_in_words(n: float) -> str:
    """Bytes in decimal units: 1500 -> 1.5 kB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= scale:
            return f"{n / scale:.1f} {unit}"
    return f"{n:.0f} bytes"
