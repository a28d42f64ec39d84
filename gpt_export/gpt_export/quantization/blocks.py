"""Weights in blocks, in the layout that MatMulNBits and GatherBlockQuantized read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpt_export.quantization.gptq import Rounded


@dataclass(frozen=True)
class BlockWeights:
    """A matrix (n_out, n_in) in blocks along n_in; w = scale * (q - zero), zero being 2^(bits - 1) where `zeros` is None.

    packed: uint8 (n_out, blocks, block * bits / 8), two 4-bit values a byte, the lower half first
    scales: float32 (n_out, blocks); or int8, and scale_steps float32 (n_out, 1) what those are multiplied by
    zeros: uint8 (n_out, ceil(blocks * bits / 8)), packed likewise, or None
    activation_bits: that the product computes with: 8; of weights in 8 bits also 16, in two terms; in 4 also 32, as floats
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
    """A matrix whose rows are those of `parts`, one after the other, each with bits and blocks of its own."""

    parts: tuple[BlockWeights, ...]

    @property
    def shape(self) -> tuple[int, int]:
        return sum(part.shape[0] for part in self.parts), self.parts[0].shape[1]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)


def pack_blocks(rounded: Rounded, *, exact: bool = False) -> BlockWeights:
    """exact: activations in as many bits as the operator has a fast kernel for beyond 8."""
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
    """Two 4-bit values a byte along the last axis, the lower half first; an odd one is padded."""
    if bits == 8:
        return q.astype(np.uint8)
    if q.shape[-1] % 2:
        q = np.concatenate((q, np.zeros_like(q[..., :1])), axis=-1)
    return (q[..., 0::2] | (q[..., 1::2] << 4)).astype(np.uint8)


def _bytes(packed: np.ndarray, bits: int) -> np.ndarray:
    if bits == 8:
        return packed
    return np.stack((packed & 15, packed >> 4), axis=-1).reshape(*packed.shape[:-1], -1)
