"""Weights in blocks as the native operator Linear reads them, in more forms than MatMulNBits has.

docs/reference/operators.md ("Weights in blocks") is the contract.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

ZEROS = {4: 8, 5: 16, 6: 32, 8: 128}  # half of the levels, by bits


@dataclass(frozen=True)
class NativeBlocks:
    """A matrix (n_out, n_in) in B blocks a row: w = (q - zero) * scale, or q * scale + offset.

    packed: q, uint8 (n_out, B, block * bits / 8), see pack_levels. scales: float16 (n_out, B), or
    int8 of that shape, to be multiplied by scale_steps, float16 (n_out, S): a step for B / S
    blocks. offsets, offset_steps: likewise, or None; the zero is half of the levels without them.
    table: int8 (16,), the level that each q stands for, without a zero; or None. activation_bits:
    of the product's input, 8 or 16 (two terms).
    """

    packed: np.ndarray
    bits: int
    block: int
    scales: np.ndarray
    scale_steps: np.ndarray | None = None
    offsets: np.ndarray | None = None
    offset_steps: np.ndarray | None = None
    table: np.ndarray | None = None
    activation_bits: int = 16

    @property
    def shape(self) -> tuple[int, int]:
        return self.packed.shape[0], self.packed.shape[1] * self.block

    @property
    def nbytes(self) -> int:
        arrays = (self.packed, self.scales, self.scale_steps, self.offsets, self.offset_steps)
        return sum(array.nbytes for array in arrays if array is not None)

    def rounded(self) -> NativeBlocks:
        """The same weights, for a product with activations of 8 bits."""
        return replace(self, activation_bits=8)

    def rows(self, first: int, last: int) -> NativeBlocks:
        """The rows from `first` up to `last`."""
        return replace(self, **{name: array[first:last] for name, array in self._arrays().items()})

    def alike(self, other: NativeBlocks) -> bool:
        """True if the rows of both can be rows of one matrix."""
        return (
            self.bits == other.bits
            and self.block == other.block
            and _same_table(self.table, other.table)
            and {name: (array.dtype, array.shape[1:]) for name, array in self._arrays().items()}
            == {name: (array.dtype, array.shape[1:]) for name, array in other._arrays().items()}
        )

    def above(self, other: NativeBlocks) -> NativeBlocks:
        """A matrix of these rows, followed by those of `other`, which is alike."""
        below = other._arrays()
        joined = {
            name: np.concatenate((array, below[name])) for name, array in self._arrays().items()
        }
        return replace(self, **joined)

    def _arrays(self) -> dict[str, np.ndarray]:
        """The arrays whose first axis is that of the rows."""
        names = ("packed", "scales", "scale_steps", "offsets", "offset_steps")
        return {name: array for name in names if (array := getattr(self, name)) is not None}


@dataclass(frozen=True)
class NativeFloats:
    """A matrix (n_out, n_in) of floats in 16 or 32 bits: float16 or float32."""

    values: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape[0], self.values.shape[1]

    @property
    def nbytes(self) -> int:
        return self.values.nbytes


@dataclass(frozen=True)
class NativeRows:
    """A matrix whose rows are those of `parts` in order. Each part has its own form."""

    parts: tuple[NativeBlocks | NativeFloats, ...]

    @property
    def shape(self) -> tuple[int, int]:
        return sum(part.shape[0] for part in self.parts), self.parts[0].shape[1]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)


def pack_levels(levels: np.ndarray, bits: int) -> np.ndarray:
    """Levels, uint8 (n_out, B, block), as the operators read them: (n_out, B, block * bits / 8).

    8 bits: a byte a level. Others: the low 4 bits, two levels a byte, the first in the low half;
    behind them the high bits, 8 levels a byte (5 bits) or 4 (6 bits), the first lowest.
    """
    if bits == 8:
        return np.ascontiguousarray(levels)
    low = levels[..., 0::2] & 15 | (levels[..., 1::2] & 15) << 4
    if bits == 4:
        return low
    high = levels >> 4
    width = bits - 4
    places = 8 // width  # levels whose high bits share a byte
    shifts = np.arange(places, dtype=np.uint8) * width
    split = high.reshape(*high.shape[:-1], -1, places) << shifts
    return np.concatenate((low, np.bitwise_or.reduce(split, axis=-1).astype(np.uint8)), axis=-1)


def unpack_levels(packed: np.ndarray, bits: int, block: int) -> np.ndarray:
    """Undo pack_levels: uint8 (n_out, B, block)."""
    if bits == 8:
        return packed
    low = packed[..., : block // 2]
    levels = np.stack((low & 15, low >> 4), axis=-1).reshape(*packed.shape[:-1], block)
    if bits == 4:
        return levels
    width = bits - 4
    places = 8 // width
    shifts = np.arange(places, dtype=np.uint8) * width
    high = packed[..., block // 2 :, None] >> shifts & ((1 << width) - 1)
    return levels | high.reshape(levels.shape).astype(np.uint8) << 4


def dequantize_native(weights: NativeBlocks) -> np.ndarray:
    """The float32 matrix (n_out, n_in) that the operator computes with."""
    q = unpack_levels(weights.packed, weights.bits, weights.block)
    if weights.table is not None:
        levels = weights.table[q].astype(np.float32)
    else:
        zero = 0 if weights.offsets is not None else ZEROS[weights.bits]
        levels = q.astype(np.float32) - np.float32(zero)
    values = levels * _grid(weights.scales, weights.scale_steps)[..., None]
    if weights.offsets is not None:
        values += _grid(weights.offsets, weights.offset_steps)[..., None]
    return values.reshape(weights.shape)


def _grid(numbers: np.ndarray, steps: np.ndarray | None) -> np.ndarray:
    """float32 (n_out, B): the numbers, each times its step if there are any."""
    values = numbers.astype(np.float32)
    if steps is None:
        return values
    each = -(-numbers.shape[1] // steps.shape[1])
    return values * steps.astype(np.float32).repeat(each, axis=1)[:, : numbers.shape[1]]


def _same_table(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    return a is b or (a is not None and b is not None and np.array_equal(a, b))
