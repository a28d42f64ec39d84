"""Weights that were in 4 bits with a real-valued offset before (GGUF's Q4_1): found again, and kept exactly.

MatMulNBits' zero points are whole numbers, and rounding such weights to them costs more than 4 bits do by themselves. The
offset is a product of its own, of the sums of the activations over each block: w = scale * (q - 8) + offset.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gpt_export.blocks import BlockWeights, pack_blocks
from gpt_export.rounding import Grid, Rounded

BLOCK = 32
HIGHEST = 15
OFF_GRID = 1e-3  # of a step: what the float32 arithmetic of an importer leaves


@dataclass(frozen=True)
class OffsetWeights:
    """blocks: the part in whole levels; offsets: float32 (blocks, n_out), added for the sum of a block's activations."""

    blocks: BlockWeights
    offsets: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        return self.blocks.shape


def found_again(weight: Tensor) -> OffsetWeights | None:
    """The 4-bit levels, scales and offsets that `weight` (n_out, n_in) was made of; None where it was not made so.

    A block's lowest value has level 0 and its highest 15: that is how such blocks are made.
    """
    n_out, n_in = weight.shape
    if n_in % BLOCK:
        return None
    values = weight.double().reshape(n_out, -1, BLOCK)
    lowest = values.amin(-1, keepdim=True)
    scale = (values.amax(-1, keepdim=True) - lowest) / HIGHEST
    step = torch.where(scale > 0, scale, 1.0)
    levels = ((values - lowest) / step).round()
    if ((values - lowest) / step - levels).abs().max() > OFF_GRID:
        return None
    middle = 1 << 3
    rounded = Rounded(
        levels=(levels - middle).reshape(n_out, n_in).short(),
        scales=scale.squeeze(-1).float(),
        zeros=None,
        grid=Grid(4, BLOCK),
    )
    offsets = (lowest + middle * scale).squeeze(-1).float()
    return OffsetWeights(pack_blocks(rounded), offsets.T.contiguous().numpy())
