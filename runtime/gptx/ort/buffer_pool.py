"""Rooms on a device that no session has now. The next session with as many rows of the same capacity takes one, and with it
the CUDA graph that was captured for it: capturing takes some runs of the model, which a short text would notice.

To be used within the device's turn.
"""

from __future__ import annotations

from typing import Any

MOST = 256_000_000  # bytes of rooms that are kept


class Spare:
    """Rooms by (rows, capacity); each has a `shape`, a `size` in bytes and `let_go()`."""

    def __init__(self) -> None:
        self._rooms: dict[tuple[int, int], Any] = {}
        self._closed = False

    def take(self, shape: tuple[int, int]) -> Any | None:
        return self._rooms.pop(shape, None)

    def give(self, room: Any) -> None:
        held = sum(one.size for one in self._rooms.values())
        if self._closed or room.shape in self._rooms or held + room.size > MOST:
            room.let_go()
        else:
            self._rooms[room.shape] = room

    def clear(self) -> bool:
        """Let go of all; whether there was any."""
        rooms, self._rooms = self._rooms, {}
        for room in rooms.values():
            room.let_go()
        return bool(rooms)

    def close(self) -> None:
        """Keep none any more."""
        self._closed = True
        self.clear()
