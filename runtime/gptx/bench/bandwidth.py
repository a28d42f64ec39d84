"""Measure how fast this machine's memory can be read: `python -m gptx.bench.bandwidth THREADS`.

To decode one token at batch 1, an engine reads every weight once. So bytes a second, divided by
the bytes of the weights, limit the tokens a second of every engine. Several ways of reading are
tried, because none is the fastest on every processor. This runs in a process of its own, because
BLAS takes its number of threads from the environment when numpy is imported.
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

PASSES = 6  # the fastest one counts
# name -> (dtype, function that reads an array once without holding Python's lock)
KERNELS: dict[str, tuple[str, Callable[[np.ndarray], object]]] = {
    "dot of float64": ("f8", lambda array: np.dot(array, array)),
    "dot of float32": ("f4", lambda array: np.dot(array, array)),
    "sum of int64": ("i8", np.sum),
    "or of uint64": ("u8", np.bitwise_or.reduce),
}


def last_level_cache() -> int:
    """Bytes of the processor's largest cache; 0 if the system does not tell."""
    found = (
        file.read_text().strip()
        for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    )
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    sizes = (re.fullmatch(r"(\d+)([KMG])", text) for text in found)
    return max((int(size[1]) * units[size[2]] for size in sizes if size), default=0)


def size_to_read() -> int:
    """Bytes to read: 256 MiB or four times the last cache, at most an eighth of free memory."""
    from gptx.system.cpu import memory

    wanted, (total, free) = max(256 << 20, 4 * last_level_cache()), memory()
    return min(wanted, (free or total or wanted << 3) >> 3)


def fastest(threads: int, size: int) -> dict[str, float]:
    """Bytes a second for each way of reading; the threads share `size` bytes evenly."""
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
