"""Folders and files on the disk: which kind they are, and writing them whole or not at all."""

from __future__ import annotations

import errno
import glob
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from gptx.errors import OutputError, UsageError

MANIFEST = "gptx.json"
# The start of the small file that Git LFS leaves in place of a file that was not fetched.
LFS_POINTER = b"version https://git-lfs"
# Errors that come from the disk or the path, and not from a bug in gptx.
_DISK_ERRORS = {
    errno.ENOSPC,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EDQUOT,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
}


def not_plain(folder: Path, name: str) -> str | None:
    """Why the file `name` in `folder` must not be read; None if it may be.

    It must be a plain file. If it is a link, the link must end inside the folder, or at a blob of
    the hub's cache. Raises OSError if the file is missing, or if its kind cannot be determined.
    """
    path = folder / name
    mode = path.stat().st_mode
    if not lies_inside(path, folder):
        return f"{name} is a link that leads out of the folder"
    if stat.S_ISREG(mode):
        return None
    what = "a folder" if stat.S_ISDIR(mode) else "a pipe, a device or a socket"
    return f"{name} is {what}, not a file"


def is_plain(folder: Path, name: str) -> bool:
    """True if the file may be read (see not_plain); False also if it is missing."""
    try:
        return not_plain(folder, name) is None
    except OSError:
        return False


def everything_in(folder: Path) -> Iterator[str]:
    """The paths of all files and links in a folder, at any depth.

    Links are not followed. If `folder` itself is a link or a file, its own path is the only one.
    For a subfolder that cannot be read, its path stands in place of its files. A folder that does
    not exist gives no paths.
    """
    if os.path.islink(folder) or not os.path.isdir(folder):
        yield from [str(folder)] if os.path.lexists(folder) else []
        return
    waiting = [str(folder)]
    while waiting:
        here = waiting.pop()
        try:
            entries = list(os.scandir(here))
        except OSError:  # no permission, or the path is too long
            yield here
            continue
        waiting += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        yield from (entry.path for entry in entries if not entry.is_dir(follow_symlinks=False))


def kind_of(
    path: Path,
) -> Literal["artifact", "checkpoint", "adapter", "folder", "file", "missing"]:
    """What a path leads to: an artifact, another kind of folder, a file or nothing.

    An artifact has a gptx.json, an adapter an adapter_config.json, a checkpoint a config.json. A
    folder with both configs is an adapter, even if it holds a model's weights. transformers loads
    such a folder as an adapter too, and programs that train adapters leave a config.json there.
    """
    if not os.path.exists(path):  # Path.exists() would raise for a name that is too long
        return "missing"
    if not path.is_dir():
        return "file"
    if (path / MANIFEST).exists():
        return "artifact"
    if (path / "adapter_config.json").exists():
        return "adapter"
    return "checkpoint" if (path / "config.json").exists() else "folder"


def lies_inside(file: Path, folder: Path) -> bool:
    """True if the file, links followed, lies in the folder or is a blob of the hub's cache."""
    root = os.path.realpath(folder)
    return os.path.realpath(file).startswith(os.path.join(root, "")) or is_hub_blob(file)


def is_hub_blob(link: Path) -> bool:
    """True for a link such as huggingface_hub's cache makes.

    It leads from REPO/snapshots/REVISION/... to a file in REPO/blobs/. Links are followed to their
    end, so a "blob" that is itself a link to somewhere else does not count.
    """
    place = Path(os.path.realpath(link.parent))
    snapshots = next((above for above in place.parents if above.name == "snapshots"), None)
    if snapshots is None:
        return False
    end = os.path.realpath(link)
    return os.path.dirname(end) == str(snapshots.parent / "blobs") and os.path.isfile(end)


@contextmanager
def new_folder(path: Path, *, force: bool = False, needed: int = 0) -> Iterator[Path]:
    """Yield an empty folder, which is moved to `path` if the block ends without an error.

    If the block fails, the folder is removed, and `path` stays as it was. needed: bytes that must
    be free on the disk. force: replace what is at `path`, if it is an empty folder, or one that
    gptx, Hugging Face or PEFT wrote (it has a manifest or a config). Raises OutputError.
    """
    path = Path(os.path.realpath(path))  # if it is a link, its target is replaced
    check_output(path, force=force, needed=needed)
    # The name exists before the folder: Ctrl-C between the two must not leave the folder behind.
    staging = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.part"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staging.mkdir()
        yield staging
        _swap(staging, path)
    except OSError as error:
        if isinstance(error, OutputError) or error.errno not in _DISK_ERRORS:
            raise
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_output(path: Path, *, force: bool = False, needed: int = 0) -> None:
    """Raise the OutputError that new_folder would raise, before long work begins."""
    kind = kind_of(path)
    if kind != "missing" and Path(os.path.realpath(path)) in (Path.cwd(), *Path.cwd().parents):
        raise OutputError(
            f"{path} is or holds the current folder, and the output would replace it: "
            "choose another path"
        )
    if kind == "file":
        raise OutputError(
            f"{path} is a file, and a folder is to be written there: choose another path"
        )
    empty = kind == "folder" and not any(path.iterdir())
    if kind != "missing" and not empty:
        if not force:
            raise OutputError(f"{path} exists: choose another path, or replace it with --force")
        if kind == "folder":
            raise OutputError(
                f"{path} holds neither gptx.json nor config.json, so --force does not remove it"
            )
    parent = next(p for p in path.absolute().parents if p.exists())
    if not parent.is_dir():
        raise OutputError(f"cannot write {path}: {parent} is not a folder")
    if not os.access(parent, os.W_OK):
        raise OutputError(f"cannot write {path}: no permission to write in {parent}")
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise OutputError(
            f"cannot write {path}: it takes {needed / 1e6:,.0f} MB, "
            f"and {free / 1e6:,.0f} MB are free"
        )


def check_new_file(path: Path, *, force: bool = False) -> None:
    """Raise OutputError if write_file would fail, or if `path` exists and force is False."""
    if path.is_dir():
        raise OutputError(
            f"{path} is a folder, and a file is to be written there: choose another path"
        )
    if os.path.exists(path) and not force:
        raise OutputError(f"{path} exists: choose another path, or replace it with --force")
    if not path.absolute().parent.is_dir():
        raise OutputError(f"cannot write {path}: {path.absolute().parent} is not a folder")
    if not os.access(path.absolute().parent, os.W_OK):
        raise OutputError(
            f"cannot write {path}: no permission to write in {path.absolute().parent}"
        )


def write_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, replacing one that is there. Raises OutputError."""
    staging = path.absolute().parent / f".{path.name}.{uuid.uuid4().hex[:8]}.part"
    try:
        staging.write_bytes(data)
        os.replace(staging, path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
    finally:
        staging.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Clean up after a process that was killed in new_folder(path).

    Its unfinished folder is removed. If it was killed while it replaced `path`, the old folder is
    moved back.
    """
    path = Path(os.path.abspath(path))
    if not path.parent.is_dir():
        return
    pattern = f"{glob.escape(f'.{path.name}.')}????????.*"
    for left in sorted(path.parent.glob(pattern)):
        if left.suffix == ".old" and not path.exists():
            os.rename(left, path)
        elif left.suffix in (".old", ".part"):
            shutil.rmtree(left, ignore_errors=True)


def check_apart(source: Path, out: Path) -> None:
    """Raise UsageError if writing the folder `out` would remove `source`."""
    if not os.path.exists(source):  # `source` is the name of a model on the hub, not a path
        return
    here, there = source.resolve(), out.resolve()
    if there == here or there in here.parents:
        what = (
            f"{out} is the source itself" if there == here else f"{out} holds the source, {source}"
        )
        raise UsageError(
            f"{what}, and the output would replace it: choose another path for the output"
        )


def _swap(staging: Path, path: Path) -> None:
    """Move `staging` to `path`, and remove what was there."""
    old = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.old"
    try:
        if path.exists():
            os.rename(path, old)
        os.rename(staging, path)
    finally:
        # After any interruption (Ctrl-C too), `path` holds either the old folder or the new one.
        if old.exists() and not path.exists():
            os.rename(old, path)
        shutil.rmtree(old, ignore_errors=True)
