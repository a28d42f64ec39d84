"""Keys and values of texts that were read once: found by their first tokens, copied into new rows.

Texts are stored in blocks of BLOCK tokens. Blocks that begin two texts alike are stored once, so
the blocks form a tree. The block that was used longest ago is dropped first.

A position's keys and values depend on the tokens up to it alone, so they are what reading the text
anew would give.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from gptx.text.prefix import common_length

ALIGNED = 64  # bytes: where an array of a block begins
BLOCK = 64  # tokens; a multiple of kv_cache.native.GROUP

Parts = list[np.ndarray]  # the arrays of a row's cache, (G, n, ...) each; see Rows.read


@dataclass(eq=False)
class Block:
    """Up to BLOCK tokens behind those of `parent`, and their keys and values."""

    tokens: tuple[int, ...]
    parts: Parts
    parent: Block | None
    children: dict[tuple[int, ...], Block] = field(default_factory=dict)
    used: int = 0  # the number of the last use of any block

    @property
    def bytes(self) -> int:
        """The memory of the keys and values."""
        return sum(part.nbytes for part in self.parts)


class PrefixCache:
    """Beginnings of texts, of at most `budget` bytes together.

    Threads: only one thread at a time may call it.
    """

    def __init__(self, budget: int) -> None:
        self.budget, self.bytes = budget, 0
        self.hits = self.hit_tokens = 0  # texts that began with a stored one, and their tokens
        self._root, self._uses = Block((), [], None), 0

    def find(self, tokens: Sequence[int]) -> tuple[int, Parts]:
        """How many of the first tokens are stored, and their keys and values."""
        path = self._path(tokens)
        n = sum(length for _, length in path)
        if not n:
            return 0, []
        self.hits, self.hit_tokens = self.hits + 1, self.hit_tokens + n
        for block, _ in path:
            self._touch(block)
        columns = zip(*(block.parts for block, _ in path))
        return n, [np.concatenate(column, axis=1) for column in columns]

    def _path(self, tokens: Sequence[int]) -> list[tuple[Block, int]]:
        """The blocks that `tokens` begin with, each with the number of its tokens that agree."""
        path, block = [], self._root
        while True:
            rest = tuple(tokens[BLOCK * len(path) : BLOCK * (len(path) + 1)])
            if (whole := block.children.get(rest)) is not None:
                path.append((whole, len(rest)))
                block = whole
                continue
            # A copy: a draft model's cache may be made smaller while it is searched
            others = list(block.children.values())
            best = max(others, key=lambda one: _alike(one, rest), default=None)
            if best is not None and (length := _alike(best, rest)):
                path.append((best, length))
            return path

    def store(self, tokens: Sequence[int], read: Callable[[int, int], Parts]) -> None:
        """Store a text, as far as there is memory for it.

        read: the keys and values of the positions from .. to, see Rows.read.
        """
        try:
            self._store(tokens, read)
        except (MemoryError, OSError):  # mmap raises OSError
            self.count_bytes()
        self.shrink(self.budget)

    def _store(self, tokens: Sequence[int], read: Callable[[int, int], Parts]) -> None:
        block = self._root
        for start in range(0, len(tokens), BLOCK):
            new = tuple(tokens[start : start + BLOCK])
            child = block.children.get(new)
            if child is None and any(
                _alike(one, new) == len(new) for one in block.children.values()
            ):
                return  # a longer block begins with these
            if child is None:
                for shorter in [one for one in block.children.values() if _begins(one, new)]:
                    self._drop(shorter)
                child = self.add(new, read(start, start + len(new)), block)
            self._touch(child)
            block = child

    def shrink(self, budget: int) -> None:
        """Drop blocks until the others take at most `budget` bytes."""
        while self.bytes > max(budget, 0):
            leaves = [block for block in self.blocks() if not block.children]
            leaves.sort(key=lambda block: block.used)
            for block in leaves[: max(1, len(leaves) // 4)]:
                if self.bytes > max(budget, 0):
                    self._drop(block)

    def add(self, tokens: tuple[int, ...], parts: Parts, parent: Block | None = None) -> Block:
        """Add tokens behind those of a block (None: at the beginning), if they are not there yet.

        Returns their block.
        """
        parent = parent or self._root
        if (block := parent.children.get(tokens)) is None:
            block = parent.children[tokens] = Block(tokens, _in_one_piece(parts), parent)
            self.bytes += block.bytes
        self._touch(block)
        return block

    def clear(self) -> None:
        """Drop everything."""
        self._root, self.bytes = Block((), [], None), 0

    def count_bytes(self) -> None:
        """Set `bytes` anew. An error in `store` or `add`, such as Ctrl-C, leaves it wrong."""
        self.bytes = sum(block.bytes for block in self.blocks())

    def blocks(self) -> list[Block]:
        """All blocks, each behind its parent."""
        found, left = [], [self._root]
        while left:
            block = left.pop()
            left += block.children.values()
            found.append(block)
        return found[1:]

    def _touch(self, block: Block) -> None:
        self._uses += 1
        block.used = self._uses

    def _drop(self, block: Block) -> None:
        assert block.parent is not None
        del block.parent.children[block.tokens]
        self.bytes -= block.bytes


def _in_one_piece(parts: Parts) -> Parts:
    """Copies of arrays in memory of their own, which the system gets back when they are dropped.

    The small arrays of blocks that come and go would leave holes between other small objects, and
    the process would grow.
    """
    ends = np.cumsum([0, *(-(-part.nbytes // ALIGNED) * ALIGNED for part in parts)])
    if not ends[-1]:
        return parts
    memory = mmap.mmap(-1, int(ends[-1]))
    copies = [
        np.frombuffer(memory, part.dtype, part.size, int(start)).reshape(part.shape)
        for part, start in zip(parts, ends)
    ]
    for copy, part in zip(copies, parts):
        copy[...] = part
    return copies


def _alike(block: Block, tokens: tuple[int, ...]) -> int:
    return common_length(block.tokens, tokens)


def _begins(block: Block, tokens: tuple[int, ...]) -> bool:
    """Whether `tokens` are longer and begin with the block's."""
    return len(block.tokens) < len(tokens) and _alike(block, tokens) == len(block.tokens)
