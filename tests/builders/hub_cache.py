"""A folder as huggingface_hub's cache keeps it: each file a link from a snapshot to a blob that is named by its hash."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path


def as_in_the_cache(folder: Path, cache: Path) -> Path:
    """The snapshot; its path has a space and accents, as names of models may."""
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
    """A copy whose every file has a second name, as file systems without symbolic links and some mirrors keep them."""
    shutil.copytree(folder, copy, copy_function=os.link)
    return copy
