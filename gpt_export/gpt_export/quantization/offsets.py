"""Detect weights that were 4-bit with an offset per block (GGUF's Q4_1), and keep them exactly.

Such a weight is w = scale * (q - 8) + offset. MatMulNBits has no offsets but zero points, which are
whole numbers; rounding to them would lose more than 4 bits lose anyway. But an offset contributes
offset * (sum of the block's activations). So the sums become further inputs of the same product,
with the offsets as their weights. Those are stored as two 4-bit digits, the second for what the
first leaves. That takes about half of the memory of offsets in float32, and one operator instead of
three. Native operators read the same columns, and add them up to offsets when they load a graph.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gpt_export.quantization.blocks import BlockWeights, dequantize_blocks, pack_blocks
from gpt_export.quantization.gptq import Grid, Rounded, round_nearest

GRID = Grid(4, block=32)
HIGHEST = 15  # level
# Tolerance in steps of a level, for the importer's float32 arithmetic. Fine-tuning changes weights
# more, and fine-tuned weights must not be detected.
OFF_GRID = 1e-3
DIGITS = 2


@dataclass(frozen=True)
class OffsetWeights:
    """A matrix (n_out, n_in) with offsets.

    blocks: the levels in n_in columns, followed by `copies` times n_in / block columns for the sums
    of the blocks' activations.
    """

    blocks: BlockWeights
    n_in: int
    copies: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.blocks.shape[0], self.n_in

    def exact(self) -> OffsetWeights:
        """The same weights, for a product with fp32 activations."""
        return replace(self, blocks=replace(self.blocks, activation_bits=32))


@torch.no_grad()
def detect_q4_1(weight: Tensor) -> OffsetWeights | None:
    """Recover the 4-bit levels, scales and offsets of `weight` (n_out, n_in); None if it has none.

    Q4_1 gives the lowest value of each block level 0, and the highest level 15.
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
    """Store `offsets` (n_out, sums) as weights of the inputs [sums, sums, ...], `copies` times.

    Each digit has blocks of its own, because the values of a block share a scale. In these blocks,
    the first input of each sum gets the digit; all other inputs get 0.
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
    columns = copies * sums  # one column per input; further columns of the blocks are dropped
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
