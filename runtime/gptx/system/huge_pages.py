"""Move a model's weights into huge pages (2 MB instead of 4 KB; Linux 6.1 and newer).

A decode step reads all weights once, and with small pages most of these reads miss the TLB. Huge
pages make a step 4 to 10% shorter.

ONNX Runtime packs weights into memory from malloc, which does not ask for huge pages. So the memory
is moved afterwards (MADV_COLLAPSE). The move takes 0.2 ms per MB. It takes several times as long if
free memory is scattered, or if a virtual machine must ask its host for memory. The time is gained
back after 60 to 400 decode steps (benchmarks/large_pages.py). Therefore the move waits until a
model has been used for a while. On other systems than Linux, nothing happens.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

Range = tuple[int, int]  # addresses: the first byte, and one past the last byte

MOVE_AFTER = 128  # runs of the graph; after so many, further use is likely
_MADV_COLLAPSE = 25  # the same number on every processor that ONNX Runtime runs on
_SETTING = Path("/sys/kernel/mm/transparent_hugepage")
_AT_ONCE = 16  # huge pages per system call; each call waits once for all cores (3 ms)
# The share of a huge page that must be resident. The move adds memory for the rest of the page.
_FULL = 15 / 16


class HugePages:
    """The memory that was mapped between the creation of this object and the call of `end`.

    After MOVE_AFTER runs that memory is moved into huge pages. enabled=False: it is never moved.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        self._size = _huge_page_size() if enabled else 0
        self._before = _anonymous_memory() if self._size else []
        self._pages: list[Range] = []
        self._runs = 0

    def end(self) -> None:
        """Remember the memory that was mapped since the creation, in whole huge pages."""
        if self._size:
            self._pages = list(_new_pages(_anonymous_memory(), self._before, self._size))

    def count_run(self) -> None:
        """Called once per run. After MOVE_AFTER runs, starts a thread that moves the memory."""
        self._runs += 1
        if self._runs == MOVE_AFTER and self._pages:
            threading.Thread(
                target=_collapse, args=(self._pages,), name="gptx-huge-pages", daemon=True
            ).start()


def _huge_page_size() -> int:
    """Bytes of a huge page; 0 if the kernel has none, or they are switched off ("never")."""
    try:
        if "[never]" in (_SETTING / "enabled").read_text():
            return 0
        return int((_SETTING / "hpage_pmd_size").read_text())
    except (OSError, ValueError):
        return 0


def _anonymous_memory() -> list[Range]:
    """This process's writable memory that is not mapped from a file."""
    try:
        maps = Path("/proc/self/maps").read_text(errors="replace")
    except OSError:  # a container without /proc
        return []
    found = re.finditer(
        r"^([0-9a-f]+)-([0-9a-f]+) rw-p \S+ \S+ 0 *(?:\[heap\])?$", maps, re.MULTILINE
    )
    return [(int(match[1], 16), int(match[2], 16)) for match in found]


def _new_pages(now: Sequence[Range], before: Sequence[Range], size: int) -> Iterator[Range]:
    """The aligned huge pages that lie wholly in `now`, without any byte of `before`."""
    for start, end in now:
        for page in range(-(-start // size) * size, end - size + 1, size):
            if not any(low < page + size and page < high for low, high in before):
                yield page, page + size


def _collapse(pages: Sequence[Range]) -> None:
    """Move the resident ones of these pages into huge pages.

    The contents never change, also if the memory was freed and used for something else meanwhile.
    """
    try:
        madvise = ctypes.CDLL(None, use_errno=True).madvise
        for start, end in _joined(_resident(pages)):
            failed = madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_COLLAPSE)
            # EAGAIN: a page was in use at that moment; go on with the next range. Any other error:
            # the kernel is too old, or no huge pages are left; the small pages stay.
            if failed and ctypes.get_errno() != errno.EAGAIN:
                return
    except (OSError, AttributeError):
        return


def _resident(pages: Sequence[Range]) -> Iterator[Range]:
    """The pages of which at least the share _FULL is in memory.

    /proc/self/pagemap has 8 bytes for each small page; the highest bit is set if it is in memory.
    """
    small = (pages[0][1] - pages[0][0]) // mmap.PAGESIZE  # small pages in a huge one
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        for start, end in pages:
            entries = np.frombuffer(
                os.pread(pagemap.fileno(), 8 * small, start // mmap.PAGESIZE * 8), np.uint64
            )
            if np.count_nonzero(entries >> np.uint64(63)) >= _FULL * small:
                yield start, end


def _joined(pages: Iterator[Range]) -> Iterator[Range]:
    """Neighbouring pages joined into ranges of at most _AT_ONCE pages."""
    joined: list[Range] = []
    for page in pages:
        if joined and (page[0] != joined[-1][1] or len(joined) == _AT_ONCE):
            yield joined[0][0], joined[-1][1]
            joined = []
        joined.append(page)
    if joined:
        yield joined[0][0], joined[-1][1]
