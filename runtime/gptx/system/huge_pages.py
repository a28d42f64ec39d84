"""The memory that opening a graph took, in large pages (2 MB, where others have 4 KB).

A step reads all weights once, and in small pages it misses the TLB all the way. malloc asks for no large ones, so what was
packed is moved there: MADV_COLLAPSE, Linux 6.1 and newer; elsewhere nothing happens. Steps are 4 to 10% shorter then.
Moving takes 0.2 ms a MB, several times that where free memory is scattered or a virtual machine must ask its host for it,
which 60 to 400 steps gain (benchmarks/large_pages.py). So it waits until a model has been used for a while.
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

Range = tuple[int, int]  # addresses: first, and first behind

WORTH = 128  # calls after which more are to be expected
_COLLAPSE = 25  # Linux's MADV_COLLAPSE, the same on every processor that ONNX Runtime runs on
_SETTING = Path("/sys/kernel/mm/transparent_hugepage")
_AT_ONCE = 16  # large pages a call: each call waits for all cores once, 3 ms
_FULL = 15 / 16  # how much of a large page must be there already: the rest would be new memory


class LargePages:
    """The memory that was mapped between the moment that this was made and `end`. If not `enabled`, it stays as it is."""

    def __init__(self, *, enabled: bool = True) -> None:
        self._size = _size() if enabled else 0
        self._before = _anonymous() if self._size else []
        self._ranges: list[Range] = []
        self._calls = 0

    def end(self) -> None:
        if self._size:
            self._ranges = list(_whole_pages(_anonymous(), self._before, self._size))

    def called(self) -> None:
        """Called once per run; after WORTH runs, starts the move into large pages in a thread of its own."""
        self._calls += 1
        if self._calls == WORTH and self._ranges:
            threading.Thread(
                target=_collapse, args=(self._ranges,), name="gptx-large-pages", daemon=True
            ).start()


def _size() -> int:
    """Bytes of a large page; 0 where the kernel has none or its owner wants none."""
    try:
        if "[never]" in (_SETTING / "enabled").read_text():
            return 0
        return int((_SETTING / "hpage_pmd_size").read_text())
    except (OSError, ValueError):
        return 0


def _anonymous() -> list[Range]:
    """This process's own memory that no file lies behind."""
    try:
        maps = Path("/proc/self/maps").read_text(errors="replace")
    except OSError:  # a container without /proc
        return []
    found = re.finditer(
        r"^([0-9a-f]+)-([0-9a-f]+) rw-p \S+ \S+ 0 *(?:\[heap\])?$", maps, re.MULTILINE
    )
    return [(int(match[1], 16), int(match[2], 16)) for match in found]


def _whole_pages(now: Sequence[Range], before: Sequence[Range], size: int) -> Iterator[Range]:
    """The aligned pages of `now` that have nothing of `before` in them."""
    for start, end in now:
        for page in range(-(-start // size) * size, end - size + 1, size):
            if not any(low < page + size and page < high for low, high in before):
                yield page, page + size


def _collapse(ranges: Sequence[Range]) -> None:
    """Move those that are full. An address that something else has by now loses nothing either."""
    try:
        madvise = ctypes.CDLL(None, use_errno=True).madvise
        for start, end in _runs(_full(ranges)):
            failed = madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _COLLAPSE)
            if (
                failed and ctypes.get_errno() != errno.EAGAIN
            ):  # which is one page that was in use just then
                return  # an older kernel, or no large pages left: the small ones serve
    except (OSError, AttributeError):
        return


def _full(ranges: Sequence[Range]) -> Iterator[Range]:
    """Those whose memory is there, by /proc/self/pagemap: 8 bytes a page, the highest bit says so."""
    pages = (ranges[0][1] - ranges[0][0]) // mmap.PAGESIZE
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        for start, end in ranges:
            entries = np.frombuffer(
                os.pread(pagemap.fileno(), 8 * pages, start // mmap.PAGESIZE * 8), np.uint64
            )
            if np.count_nonzero(entries >> np.uint64(63)) >= _FULL * pages:
                yield start, end


def _runs(ranges: Iterator[Range]) -> Iterator[Range]:
    """Neighbours joined, _AT_ONCE at most."""
    joined: list[Range] = []
    for one in ranges:
        if joined and (one[0] != joined[-1][1] or len(joined) == _AT_ONCE):
            yield joined[0][0], joined[-1][1]
            joined = []
        joined.append(one)
    if joined:
        yield joined[0][0], joined[-1][1]
