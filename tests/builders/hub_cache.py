"""Folders as huggingface_hub's cache keeps them.

Each file is a link from a snapshot to a blob, whose name is its hash.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path


def as_in_the_cache(folder: Path, cache: Path) -> Path:
    """Copy `folder` into a new cache. Returns the snapshot, whose path has a space and accents."""
    repository = cache / "models--Élise--Mon modèle"
    snapshot, blobs = repository / "snapshots" / ("0" * 40), repository / "blobs"
    blobs.mkdir(parents=True)
    for file in (path for path in folder.rglob("*") if path.is_file()):
        link, blob = (
            snapshot / file.relative_to(folder),
            blobs / hashlib.sha256(file.read_bytes()).hexdigest(),
        )
        shutil.copyfile(file, blob)
        link.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(os.path.relpath(blob, link.parent), link)
    return snapshot


def with_hard_links(folder: Path, copy: Path) -> Path:
    """A copy of hard links, as on file systems without symbolic links, and in some mirrors."""
    shutil.copytree(folder, copy, copy_function=os.link)
    return copy
