"""Read a checkpoint's small files, and check that a file is there and whole.

Every fault is a CheckpointError that names the file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from gptx.artifact import json_files
from gptx.artifact.folders import LFS_POINTER
from gptx.errors import CheckpointError


def check_file(path: Path) -> None:
    """Raise CheckpointError if a file is missing, empty or a Git LFS pointer."""
    if not path.is_file():
        if path.is_symlink() and not os.path.exists(path):
            raise CheckpointError(
                f"{path} is a link to {os.readlink(path)}, which is not there: copy or download it"
                " again"
            )
        raise CheckpointError(
            f"{path} does not exist" if not path.exists() else f"{path} is not a file"
        )
    with path.open("rb") as file:
        start = file.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        raise CheckpointError(
            f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in {path.parent}"
        )
    if not start:
        raise CheckpointError(f"{path} is empty: copy or download it again")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises CheckpointError."""
    return json_files.read_json(path, CheckpointError)


def read_text(path: Path) -> str:
    """The text of a UTF-8 file. Raises CheckpointError."""
    check_file(path)
    try:
        return path.read_text("utf-8")
    except UnicodeError as error:
        raise CheckpointError(f"{path} is not UTF-8: {error}") from error
