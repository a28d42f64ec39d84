"""The files in an artifact's folder, compared with the files that gptx.json lists."""

from __future__ import annotations

import os
from pathlib import Path

from gptx.artifact.folders import LFS_POINTER, everything_in, not_plain
from gptx.artifact.layout import GRAPH_FOLDERS, SIDE_FILES


def file_problem(folder: Path, name: str, size: int) -> str | None:
    """What is wrong with a listed file of `size` bytes; None if nothing is."""
    file = folder / name
    try:
        if problem := not_plain(folder, name):
            return problem
        found = file.stat().st_size
        if found == size:
            return None
        with file.open("rb") as opened:
            start = opened.read(len(LFS_POINTER))
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    if start == LFS_POINTER:
        return f"{name} is a Git LFS pointer, not the file: run git lfs pull in that clone"
    how = "is cut short" if found < size else "was changed"
    return f"{name} {how}: {found:,} bytes, expected {size:,}: copy it again"


def loadable_files(folder: Path) -> set[str]:
    """Paths, relative to the folder, of its files and links that a loader would open."""
    found = {name for name in SIDE_FILES if os.path.lexists(folder / name)}
    for part in GRAPH_FOLDERS:
        found |= {Path(one).relative_to(folder).as_posix() for one in everything_in(folder / part)}
    return found
