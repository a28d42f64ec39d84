"""Give memory that was needed only for loading back to the operating system (Linux).

Opening a graph leaves three kinds of memory resident that runs hardly use:

- Pages of the artifact's files: ONNX Runtime packs most weights into memory of its own, and keeps
  the rest mapped. A run reads only one row per token of a tied embedding.
- Pages of ONNX Runtime's library: about half of its code runs only once.
- Memory that was used for packing: it is freed, but malloc keeps it.

A page that is read again later is read from its file. Other systems: nothing happens.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterator
from pathlib import Path

_MADV_DONTNEED = 4  # the same number on every processor that ONNX Runtime runs on


def trim_memory(*folders: Path) -> None:
    """Drop the resident pages of all files in these folders, and malloc's unused memory.

    Only mappings that this process has not written to are dropped. Takes 15 to 25 ms, most of it to
    read /proc/self/smaps.

    No other thread may unmap a file in these folders meanwhile. Other memory could then be mapped
    at the file's address, and would lose its contents.
    """
    if sys.platform != "linux":
        return
    try:
        smaps = Path("/proc/self/smaps").read_text(errors="replace")
        libc = ctypes.CDLL(None)
        madvise = libc.madvise
    except (OSError, AttributeError):
        return  # a container without /proc, or a libc without madvise: the pages stay
    for folder in folders:
        for start, size in clean_mappings(smaps, folder.resolve()):
            madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), _MADV_DONTNEED)
    if hasattr(libc, "malloc_trim"):  # glibc only
        libc.malloc_trim(ctypes.c_size_t(0))


def clean_mappings(smaps: str, folder: Path) -> Iterator[tuple[int, int]]:
    """Address and size (bytes) of each mapping of a file in `folder` that was never written to.

    smaps: the text of /proc/self/smaps. A page that was written to is this process's own copy, and
    dropping it would lose what was written. So a mapping with such a page, in memory or swapped
    out, is left alone.
    """
    inside = re.escape(f" {folder}/")
    for match in re.finditer(
        rf"^([0-9a-f]+)-([0-9a-f]+) .*{inside}.*\n((?:[A-Z].*\n)*)", smaps, re.MULTILINE
    ):
        if not re.search(r"^(Anonymous|Swap): +[1-9]", match[3], re.MULTILINE):
            start = int(match[1], 16)
            yield start, int(match[2], 16) - start
