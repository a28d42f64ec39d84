"""Give memory that was needed only for loading back to the operating system (Linux).

ONNX Runtime maps a graph's external data, packs most of it into memory of its own, and keeps mapped what a second node
reads: of a tied embedding a run reads one row a token, and all of it stays resident. Of its own library it needs half
only once; and what it packed in is freed, but stays with malloc. In: folders. Out: nothing; a page that is read after
all comes back from the file. Linux only, elsewhere nothing happens. Knows nothing of models.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterator
from pathlib import Path

_DONTNEED = 4  # Linux's MADV_DONTNEED, the same on every processor that ONNX Runtime runs on


def release(*folders: Path) -> None:
    """Drop the resident pages of all files in these folders that this process has mapped and not written to, and give
    back what malloc holds and nobody uses. Takes 15 to 25 ms, most of it to read what is mapped.

    No thread may unmap such a file meanwhile: what it maps next could stand at the same address, and be lost.
    """
    if sys.platform != "linux":
        return
    try:
        smaps = Path("/proc/self/smaps").read_text(errors="replace")
        libc = ctypes.CDLL(None)
        madvise = libc.madvise
    except (
        OSError,
        AttributeError,
    ):  # no /proc in this container, or a libc without madvise: the pages stay
        return
    for folder in folders:
        for start, size in clean_mappings(smaps, folder.resolve()):
            madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), _DONTNEED)
    if hasattr(libc, "malloc_trim"):  # glibc's
        libc.malloc_trim(ctypes.c_size_t(0))


def clean_mappings(smaps: str, folder: Path) -> Iterator[tuple[int, int]]:
    """Address and size of each mapping of a file in `folder`. Where a page was written to, this process's copy would be
    lost for good: a mapping that has one, in memory or swapped out, is left alone."""
    inside = re.escape(f" {folder}/")
    for match in re.finditer(
        rf"^([0-9a-f]+)-([0-9a-f]+) .*{inside}.*\n((?:[A-Z].*\n)*)", smaps, re.MULTILINE
    ):
        if not re.search(r"^(Anonymous|Swap): +[1-9]", match[3], re.MULTILINE):
            start = int(match[1], 16)
            yield start, int(match[2], 16) - start
