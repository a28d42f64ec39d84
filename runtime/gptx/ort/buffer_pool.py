"""Cache buffers on a device that no session uses at the moment.

The next session with the same number of rows and the same capacity takes them, and with them the CUDA graph that was
captured for them. Capturing takes some runs of the model, which would be noticed in a short text.

Use it while holding the device lock.
"""

from __future__ import annotations

from typing import Any

MOST = 256_000_000  # bytes of buffers that are kept


class BufferPool:
    """Buffers by (rows, capacity). Each has a `shape`, a `size` in bytes and a method `release`."""

    def __init__(self) -> None:
        self._free: dict[tuple[int, int], Any] = {}
        self._closed = False

    def take(self, shape: tuple[int, int]) -> Any | None:
        return self._free.pop(shape, None)

    def give(self, buffers: Any) -> None:
        held = sum(one.size for one in self._free.values())
        if self._closed or buffers.shape in self._free or held + buffers.size > MOST:
            buffers.release()
        else:
            self._free[buffers.shape] = buffers

    def clear(self) -> bool:
        """Release all of them. Returns whether there were any."""
        buffers, self._free = self._free, {}
        for one in buffers.values():
            one.release()
        return bool(buffers)

    def close(self) -> None:
        """Release all of them, and keep no others from now on."""
        self._closed = True
        self.clear()
