"""Buffers of closed KV caches on a device, kept for the next session.

The next session with as many rows and the same capacity takes the buffers over, together with the
CUDA graph that was captured for them. Capturing a CUDA graph takes several runs of the model. For a
short text, that would be a large part of the time.

Threads: hold the device lock during each call.
"""

from __future__ import annotations

from typing import Any

MOST_BYTES = 256_000_000  # of all buffers in the pool together


class BufferPool:
    """Buffers by shape (rows, capacity), at most one of each shape.

    Buffers have a `shape`, a `size` in bytes and a method `release`.
    """

    def __init__(self) -> None:
        self._free: dict[tuple[int, int], Any] = {}
        self._closed = False

    def take(self, shape: tuple[int, int]) -> Any | None:
        """Remove the buffers of a shape from the pool, and return them; None if there are none."""
        return self._free.pop(shape, None)

    def give(self, buffers: Any) -> None:
        """Put buffers into the pool.

        They are released if the pool is closed, is full or has buffers of the same shape.
        """
        used = sum(one.size for one in self._free.values())
        if self._closed or buffers.shape in self._free or used + buffers.size > MOST_BYTES:
            buffers.release()
        else:
            self._free[buffers.shape] = buffers

    def clear(self) -> bool:
        """Release all buffers. Returns True if there were any."""
        buffers, self._free = self._free, {}
        for one in buffers.values():
            one.release()
        return bool(buffers)

    def close(self) -> None:
        """Release all buffers. Buffers that are given later are released at once."""
        self._closed = True
        self.clear()
