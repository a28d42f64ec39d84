"""Writing a folder or a file whole or not at all, and telling what kind of folder one is."""

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
LFS_POINTER = (
    b"version https://git-lfs"  # how the file begins that Git leaves where it has not fetched one
)


def not_plain(folder: Path, name: str) -> str | None:
    """Why `name` in `folder` must not be read: a link leads out of the folder (but for the hub's cache), or it is no plain
    file. None where it is good. Raises OSError for a file that is missing or cannot be looked at."""
    path = folder / name
    mode = path.stat().st_mode
    if not lies_inside(path, folder):
        return f"{name} is a link that leads out of the folder"
    if stat.S_ISREG(mode):
        return None
    return f"{name} is {'a folder' if stat.S_ISDIR(mode) else 'a pipe, a device or a socket'}, not a file"


def is_plain(folder: Path, name: str) -> bool:
    """As not_plain says; False also for what is missing or cannot be looked at."""
    try:
        return not_plain(folder, name) is None
    except OSError:
        return False


def everything_in(folder: Path) -> Iterator[str]:
    """The paths of all files and links in a folder and in its folders, however deep. Links are not followed, also not where
    `folder` is one; a folder that cannot be read stands for itself. Nothing where there is no such folder."""
    if os.path.islink(folder) or not os.path.isdir(folder):
        yield from [str(folder)] if os.path.lexists(folder) else []
        return
    waiting = [str(folder)]
    while waiting:
        here = waiting.pop()
        try:
            entries = list(os.scandir(here))
        except OSError:  # no permission, or a path that is too long
            yield here
            continue
        waiting += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        yield from (entry.path for entry in entries if not entry.is_dir(follow_symlinks=False))


def kind_of(
    path: Path,
) -> Literal["artifact", "checkpoint", "adapter", "folder", "file", "missing"]:
    """What stands at a path: an artifact has our manifest, an adapter an adapter_config.json, a checkpoint a config.json.

    A folder with both configurations is an adapter, whether or not there are weights of a model too: transformers loads
    the base that the adapter names and applies the adapter, and programs that train adapters leave a config.json there.
    """
    if not os.path.exists(path):  # not Path.exists(), which raises for a name that is too long
        return "missing"
    if not path.is_dir():
        return "file"
    if (path / MANIFEST).exists():
        return "artifact"
    if (path / "adapter_config.json").exists():
        return "adapter"
    return "checkpoint" if (path / "config.json").exists() else "folder"


def lies_inside(file: Path, folder: Path) -> bool:
    """Whether a file that `folder` names really lies in it, links followed, or is a blob of the hub's cache."""
    root = os.path.realpath(folder)
    return os.path.realpath(file).startswith(os.path.join(root, "")) or is_hub_blob(file)


def is_hub_blob(link: Path) -> bool:
    """Whether this is a link as huggingface_hub's cache makes them, from REPO/snapshots/REVISION/... to REPO/blobs/HASH.

    Links of links count by where they end, so a blob that is itself a link to somewhere else is none.
    """
    place = Path(os.path.realpath(link.parent))
    snapshots = next((above for above in place.parents if above.name == "snapshots"), None)
    if snapshots is None:
        return False
    end = os.path.realpath(link)
    return os.path.dirname(end) == str(snapshots.parent / "blobs") and os.path.isfile(end)


@contextmanager
def new_folder(path: Path, *, force: bool = False, needed: int = 0) -> Iterator[Path]:
    """Yield an empty folder beside `path` that takes its place when the block ends well, and is removed when it does not.

    `needed` bytes must be free there. An existing `path` is refused without `force`; with it, only an empty folder or
    one that gptx, Hugging Face or PEFT wrote (it has a manifest or a config) is replaced. Raises OutputError.
    """
    path = Path(os.path.realpath(path))  # a link stays, and what it leads to is replaced
    check_output(path, force=force, needed=needed)
    # named before it is made: Ctrl-C between the two must not leave it behind
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


_DISK_ERRORS = {
    errno.ENOSPC,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EDQUOT,
    errno.ENOTDIR,
    errno.EEXIST,
}
_DISK_ERRORS |= {errno.ENAMETOOLONG}


def check_output(path: Path, *, force: bool = False, needed: int = 0) -> None:
    """Raise OutputError now for what would stop new_folder later, so that long work does not end in it."""
    kind = kind_of(path)
    if kind != "missing" and Path(os.path.realpath(path)) in (Path.cwd(), *Path.cwd().parents):
        raise OutputError(
            f"{path} is or holds the current folder, and the output would replace it: choose another path"
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
            f"cannot write {path}: it takes {needed / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free"
        )


def check_new_file(path: Path, *, force: bool = False) -> None:
    """Raise OutputError now for what would stop write_file later."""
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
    """A file that appears whole or not at all, in place of one that is there. Raises OutputError."""
    staging = path.absolute().parent / f".{path.name}.{uuid.uuid4().hex[:8]}.part"
    try:
        staging.write_bytes(data)
        os.replace(staging, path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
    finally:
        staging.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Set right what a process that was killed while new_folder(path) swapped folders has left beside `path`."""
    path = Path(os.path.abspath(path))
    begins = f".{path.name}."
    for left in (
        sorted(path.parent.glob(f"{glob.escape(begins)}????????.*")) if path.parent.is_dir() else ()
    ):
        if left.suffix == ".old" and not path.exists():
            os.rename(left, path)
        elif left.suffix in (".old", ".part"):
            shutil.rmtree(left, ignore_errors=True)


def check_apart(source: Path, out: Path) -> None:
    """Raise UsageError where writing the folder `out` would remove what it is made from."""
    if not os.path.exists(source):  # a name on the hub
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
    old = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.old"
    try:
        if path.exists():
            os.rename(path, old)
        os.rename(staging, path)
    finally:  # whatever stops it, Ctrl-C too: the old folder or the new one stands at `path`
        if old.exists() and not path.exists():
            os.rename(old, path)
        shutil.rmtree(old, ignore_errors=True)
