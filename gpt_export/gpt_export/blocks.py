"""Weights in blocks: rounded to nearest, symmetric, in the layout that MatMulNBits and GatherBlockQuantized read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class BlockWeights:
    """A matrix (n_out, n_in) in blocks along n_in; w = scale * (q - 2^(bits - 1)).

    packed: uint8 (n_out, blocks, block * bits / 8), two 4-bit values a byte, the lower half first
    scales: float32 (n_out, blocks)
    """

    packed: np.ndarray
    scales: np.ndarray
    bits: int
    block: int
    shape: tuple[int, int]


def fitting_block(n_in: int, wanted: int) -> int:
    """The largest block of `wanted` or a power of two below it, down to 16, that divides n_in; `wanted` if none does
    (the last block is then padded)."""
    block = wanted
    while block >= 16:
        if n_in % block == 0:
            return block
        block //= 2
    return wanted


def quantize_blocks(weight: np.ndarray, *, bits: int, block: int) -> BlockWeights:
    """Round a float32 matrix (n_out, n_in). The largest magnitude of a block takes the level furthest from zero,
    -2^(bits-1), with the sign that the scale then carries: symmetric, and all levels used (as llama.cpp's Q4_0 does)."""
    n_out, n_in = weight.shape
    n_blocks = -(-n_in // block)
    padded = np.zeros((n_out, n_blocks * block), np.float32)
    padded[:, :n_in] = weight
    values = padded.reshape(n_out, n_blocks, block)
    at = np.abs(values).argmax(-1, keepdims=True)
    extreme = np.take_along_axis(values, at, -1)
    half = 1 << (bits - 1)
    scales = extreme / -half if bits == 4 else np.abs(extreme) / (half - 1)
    inverse = np.divide(1.0, scales, out=np.zeros_like(scales), where=scales != 0)
    q = np.clip(np.rint(values * inverse) + half, 0, 2 * half - 1).astype(np.uint8)
    if bits == 4:
        q = q[..., 0::2] | (q[..., 1::2] << 4)
    return BlockWeights(np.ascontiguousarray(q), scales[..., 0].astype(np.float32), bits, block, (n_out, n_in))


def dequantize_blocks(weights: BlockWeights) -> np.ndarray:
    """The float32 matrix (n_out, n_in) that the operators compute with."""
    q = weights.packed
    if weights.bits == 4:
        q = np.stack((q & 15, q >> 4), axis=-1).reshape(*q.shape[:-1], -1)
    values = (q.astype(np.float32) - (1 << (weights.bits - 1))) * weights.scales[..., None]
    return values.reshape(values.shape[0], -1)[:, : weights.shape[1]]
