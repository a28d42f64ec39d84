"""Weights that were in 4 bits with a real-valued offset before (GGUF's Q4_1): found again, and kept.

MatMulNBits' zero points are whole numbers, and rounding such weights to them costs more than 4 bits do by themselves. But
w = scale * (q - 8) + offset is a product with the sums of the activations over each block on top, and the sums can be
further activations of the same product: their weights are the offsets in two digits of 4 bits each, the second for what
the first leaves. That takes a fifth of the memory of offsets in float32, and one operator instead of three.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gpt_export.quantization.blocks import BlockWeights, dequantize_blocks, pack_blocks
from gpt_export.quantization.gptq import Grid, Rounded, round_nearest

GRID = Grid(4, block=32)
HIGHEST = 15
# Of a step: what the float32 arithmetic of an importer leaves. Fine-tuning moves weights more, and must not be undone.
OFF_GRID = 1e-3
DIGITS = 2


@dataclass(frozen=True)
class OffsetWeights:
    """A matrix (n_out, n_in). blocks: one of n_in and `copies` times n_in / block columns, those for a block's sums."""

    blocks: BlockWeights
    n_in: int
    copies: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.blocks.shape[0], self.n_in

    def exact(self) -> OffsetWeights:
        """The same, for activations in fp32."""
        return replace(self, blocks=replace(self.blocks, activation_bits=32))


def detect_q4_1(weight: Tensor) -> OffsetWeights | None:
    """The 4-bit levels, scales and offsets that `weight` (n_out, n_in) was made of; None where it was not made so.

    A block's lowest value has level 0 and its highest 15: that is how such blocks are made.
    """
    n_out, n_in = weight.shape
    if n_in % GRID.block:
        return None
    values = weight.double().reshape(n_out, -1, GRID.block)
    lowest = values.amin(-1, keepdim=True)
    scale = (values.amax(-1, keepdim=True) - lowest) / HIGHEST
    steps = (values - lowest) / torch.where(scale > 0, scale, 1.0)
    levels = steps.round()
    if (steps - levels).abs().max() > OFF_GRID:
        return None
    middle = 1 << (GRID.bits - 1)
    offsets = (lowest + middle * scale).squeeze(-1).float()
    extra, copies = _digits(offsets)
    rounded = Rounded(
        levels=torch.cat(((levels - middle).reshape(n_out, n_in).short(), extra.levels), 1),
        scales=torch.cat((scale.squeeze(-1).float(), extra.scales), 1),
        zeros=None,
        grid=GRID,
    )
    return OffsetWeights(pack_blocks(rounded), n_in, copies)


def _digits(offsets: Tensor) -> tuple[Rounded, int]:
    """`offsets` (n_out, sums) as columns of blocks, for inputs that are all sums, one after the other, and all again.

    Each digit has blocks of its own, since what a block holds shares a scale; the first input there of each sum takes it.
    """
    n_out, sums = offsets.shape
    width = -(-sums // GRID.block) * GRID.block
    digits = []
    for digit in range(DIGITS):
        start = digit * width
        places = (torch.arange(sums) - start) % sums
        columns = torch.zeros(n_out, width)
        columns[:, places] = offsets
        digits.append(round_nearest(columns, GRID))
        offsets = offsets - digits[-1].values()[:, places]
    copies = -(-((DIGITS - 1) * width + sums) // sums)
    columns = copies * sums  # no sum has a place behind them
    levels = torch.cat([digit.levels for digit in digits], 1)[:, :columns]
    levels = torch.nn.functional.pad(levels, (0, columns - levels.shape[1]))
    blocks = -(-columns // GRID.block)
    scales = torch.cat([digit.scales for digit in digits], 1)[:, :blocks]
    scales = torch.nn.functional.pad(scales, (0, blocks - scales.shape[1]), value=1.0)
    return Rounded(levels, scales, None, GRID), copies


def dequantize_offsets(weights: OffsetWeights) -> np.ndarray:
    """The float32 matrix (n_out, n_in) that the operator computes with."""
    values = dequantize_blocks(weights.blocks)
    main, extra = values[:, : weights.n_in], values[:, weights.n_in :]
    offsets = extra.reshape(len(extra), weights.copies, -1).sum(1)
    return main + offsets.repeat(weights.blocks.block, axis=1)
