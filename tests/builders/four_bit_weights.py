"""Weights that were 4-bit before (GGUF Q4_1)."""

from __future__ import annotations

import torch

from gpt_export.quantization.calibrate import linears
from gptx_models.gpt.model import GPT


def q4_1(shape: tuple[int, int], seed: int) -> torch.Tensor:
    """Weights that Q4_1 stores exactly: 4 bits, in blocks of 32 with an fp16 scale and offset."""
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=random).reshape(shape[0], -1, 32)
    lowest = weight.amin(-1, keepdim=True)
    scale = (weight.amax(-1, keepdim=True) - lowest) / 15
    levels = ((weight - lowest) / scale).round()
    return (levels * scale.half().float() + lowest.half().float()).reshape(shape)


def make_q4_1(gpt: GPT) -> GPT:
    """Give the layers of `gpt` weights that were Q4_1, in place; returns it."""
    with torch.no_grad():
        for seed, block in enumerate(gpt.layers):
            for part, linear in linears(block).items():
                rows, width = linear.weight.shape
                linear.weight.copy_(q4_1((rows, width), seed + len(part)) * 0.3)
    return gpt
