"""Hashes of files, and of all files that a manifest lists."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from gptx.artifact.manifest import MOST_PROBLEMS, Manifest
from gptx.errors import ArtifactError, first_of

_BLOCK = 1 << 20  # bytes read at once


def check_hashes(manifest: Manifest, progress: Callable[[str, int], None] | None = None) -> None:
    """Compare the SHA-256 of every listed file with the manifest.

    progress: called with a file's name and the number of bytes read since the last call. Raises
    ArtifactError, which names the files that differ.
    """
    changed = []
    for name, facts in manifest.files.items():
        report = (lambda n, name=name: progress(name, n)) if progress else None
        try:
            found = sha256(manifest.path / name, size=facts.size, progress=report)
        except OSError as error:
            changed.append(f"{name} cannot be read ({error.strerror})")
            continue
        if found != facts.sha256:
            found = f"{found[:12]}..." if found else "of other bytes"
            changed.append(f"{name} has sha256 {found}, expected {facts.sha256[:12]}...")
    if changed:
        raise ArtifactError(
            f"{manifest.path} was changed after it was made: "
            f"{first_of(changed, MOST_PROBLEMS, '; ')}: copy it again"
        )


def sha256(
    file: Path, *, size: int | None = None, progress: Callable[[int], object] | None = None
) -> str:
    """The SHA-256 of a file, in hexadecimal digits.

    size: the expected size in bytes; if the file has another size, the result is "". A file that
    grows meanwhile is read only up to the size that it had at first. A pipe is opened without
    waiting for a writer. progress: called with the number of bytes read since the last call.
    Raises OSError.
    """
    import hashlib

    digest = hashlib.sha256()
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with open(os.open(file, flags), "rb") as opened:
        left = os.fstat(opened.fileno()).st_size
        if size is not None and left != size:
            return ""
        while left and (block := opened.read(min(_BLOCK, left))):
            digest.update(block)
            left -= len(block)
            if progress:
                progress(len(block))
    return "" if left else digest.hexdigest()
