"""Weights in blocks, in the layout of MatMulNBits and GatherBlockQuantized."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpt_export.quantization.gptq import Rounded


@dataclass(frozen=True)
class BlockWeights:
    """A matrix (n_out, n_in) in blocks along n_in: w = scale * (q - zero).

    packed: q, uint8 (n_out, blocks, block * bits / 8). Two 4-bit values share a byte, the first one
    in its lower half. scales: float32 (n_out, blocks), or int8 of that shape, to be multiplied by
    scale_steps, float32 (n_out, 1). zeros: uint8 (n_out, ceil(blocks * bits / 8)), packed as q is;
    None if all zero points are 2^(bits - 1). activation_bits: of the product's input: 8; with 8-bit
    weights also 16 (two terms); with 4-bit weights also 32 (fp32).
    """

    packed: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | None
    bits: int
    block: int
    shape: tuple[int, int]
    activation_bits: int = 8
    scale_steps: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        arrays = (self.packed, self.scales, self.zeros, self.scale_steps)
        return sum(array.nbytes for array in arrays if array is not None)


@dataclass(frozen=True)
class StackedWeights:
    """A matrix whose rows are those of `parts` in order. Each part has its own bits and blocks."""

    parts: tuple[BlockWeights, ...]

    @property
    def shape(self) -> tuple[int, int]:
        return sum(part.shape[0] for part in self.parts), self.parts[0].shape[1]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)


def pack_blocks(rounded: Rounded, *, exact: bool = False) -> BlockWeights:
    """Lay out a rounded matrix as MatMulNBits reads it.

    exact: activations in more than 8 bits, as the kernels allow: 16 for 8-bit weights, fp32 for
    4-bit.
    """
    grid = rounded.grid
    n_out, n_in = rounded.levels.shape
    n_blocks = rounded.scales.shape[1]
    half = 1 << (grid.bits - 1)
    zeros = (
        np.full((n_out, n_blocks), half, np.int16)
        if rounded.zeros is None
        else rounded.zeros.numpy()
    )
    levels = np.zeros((n_out, n_blocks * grid.block), np.int16)
    levels[:, :n_in] = rounded.levels.numpy()
    q = (levels.reshape(n_out, n_blocks, grid.block) + zeros[..., None]).astype(np.uint8)
    packed_zeros = None if rounded.zeros is None else _nibbles(zeros, grid.bits)
    scales, steps = rounded.scales.numpy().astype(np.float32), None
    if rounded.scale_steps is not None:
        steps = rounded.scale_steps.numpy()
        scales = (scales / steps).round().astype(np.int8)
    return BlockWeights(
        packed=np.ascontiguousarray(_nibbles(q, grid.bits)),
        scales=scales,
        zeros=packed_zeros,
        bits=grid.bits,
        block=grid.block,
        shape=(n_out, n_in),
        activation_bits=8 if not exact else 16 if grid.bits == 8 else 32,
        scale_steps=steps,
    )


def dequantize_blocks(weights: BlockWeights) -> np.ndarray:
    """The float32 matrix (n_out, n_in) that the operators compute with."""
    q = _bytes(weights.packed, weights.bits).astype(np.float32)
    if weights.zeros is None:
        zeros = np.float32(1 << (weights.bits - 1))
    else:
        zeros = _bytes(weights.zeros, weights.bits)[:, : q.shape[1], None].astype(np.float32)
    scales = weights.scales if weights.scale_steps is None else weights.scales * weights.scale_steps
    values = (q - zeros) * scales[..., None]
    return values.reshape(values.shape[0], -1)[:, : weights.shape[1]]


def _nibbles(q: np.ndarray, bits: int) -> np.ndarray:
    """Pack two 4-bit values per byte along the last axis, the lower half first, padded to even."""
    if bits == 8:
        return q.astype(np.uint8)
    if q.shape[-1] % 2:
        q = np.concatenate((q, np.zeros_like(q[..., :1])), axis=-1)
    return (q[..., 0::2] | (q[..., 1::2] << 4)).astype(np.uint8)


def _bytes(packed: np.ndarray, bits: int) -> np.ndarray:
    """Undo _nibbles: one value per byte."""
    if bits == 8:
        return packed
    return np.stack((packed & 15, packed >> 4), axis=-1).reshape(*packed.shape[:-1], -1)
