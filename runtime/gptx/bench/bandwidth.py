"""How fast this machine's memory can be read, as `python -m gptx.bench.bandwidth THREADS`.

A token reads every weight once, so what memory gives a second, over the weights' bytes, is the most tokens a second
that any engine can decode at batch 1. Several ways of reading are tried, as none is the fastest on every processor.
It runs in a process of its own: BLAS takes its number of threads from the environment, before numpy is imported.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

PASSES = 6
# each reads an array once and lets other threads run meanwhile
KERNELS: dict[str, tuple[str, Callable[[np.ndarray], object]]] = {
    "dot of float64": ("f8", lambda array: np.dot(array, array)),
    "dot of float32": ("f4", lambda array: np.dot(array, array)),
    "sum of int64": ("i8", np.sum),
    "or of uint64": ("u8", np.bitwise_or.reduce),
}


def last_level_cache() -> int:
    """Bytes of the largest cache; 0 where the system does not say."""
    found = (
        file.read_text().strip()
        for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    )
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    sizes = (re.fullmatch(r"(\d+)([KMG])", text) for text in found)
    return max((int(size[1]) * units[size[2]] for size in sizes if size), default=0)


def size_to_read() -> int:
    """Well beyond the last cache, and no more than an eighth of the memory that is free."""
    from gptx.system.cpu import memory

    wanted, (total, free) = max(256 << 20, 4 * last_level_cache()), memory()
    return min(wanted, (free or total or wanted << 3) >> 3)


def fastest(threads: int, size: int) -> dict[str, float]:
    """Bytes a second by kernel, each thread reading its own part of `size` bytes."""
    return {
        name: _best_pass(dtype, kernel, threads, size) for name, (dtype, kernel) in KERNELS.items()
    }


def _best_pass(
    dtype: str, kernel: Callable[[np.ndarray], object], threads: int, size: int
) -> float:
    start, count = threading.Barrier(threads), size // threads // np.dtype(dtype).itemsize
    spans: list[list[tuple[float, float]]] = [[] for _ in range(PASSES)]

    def work() -> None:
        array = np.ones(count, dtype)
        for span in spans:
            start.wait()
            began = time.perf_counter()
            kernel(array)
            span.append((began, time.perf_counter()))

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    took = min(max(end for _, end in span) - min(begin for begin, _ in span) for span in spans)
    return count * np.dtype(dtype).itemsize * threads / took


if __name__ == "__main__":
    print(json.dumps(fastest(int(sys.argv[1]), size_to_read())))
