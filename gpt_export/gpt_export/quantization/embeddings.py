"""The weights that stand row by row: a head and an embedding with a row a token, learned positions. In 8 bits; or, for less
memory and time, with the rows of rare tokens in 4.

A tokenizer gives its lower ids to what it met most often, so "rare" is a range of ids. What the rows of rare tokens lose
counts as seldom as they are read: SmolLM2's last 41,000 tokens of 49,152 in 4 bits cost a mean KL of 0.007, all of them
0.022. The head is rounded by GPTQ, and where it is the embedding too, so is that; all else to the nearest level.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gpt_export.graph.layers import Quantized
from gpt_export.quantization.blocks import StackedWeights, pack_blocks
from gpt_export.quantization.gptq import Grid, Rounded, round_gptq, round_nearest, stacked
from gptx_models.gpt.model import GPT

# Blocks of 64: their rows are equal to the bit however many are computed together (see schemes.py). All of a head in 4 bits
# makes a GPT loop (onnxruntime issue 24384).
TABLE = Grid(8, block=64)
RARE = Grid(
    4, block=32, scale_bits=8
)  # symmetric: GatherBlockQuantized packs zero points otherwise than MatMulNBits
COMMON = 0.85  # share of a calibration text's tokens that stay in 8 bits
ROWS = 1 << 14  # of a head, rounded at a time: all at once would take gigabytes


@dataclass(frozen=True)
class Form:
    """grid: of all rows; or of those before `common`, with the rest in RARE. exact: the head's activations take more than 8
    bits. moments: of what the head reads (n_embd, n_embd), for GPTQ."""

    grid: Grid = TABLE
    common: int | None = None
    exact: bool = False
    moments: Tensor | None = None


def tables(gpt: GPT, form: Form) -> dict[str, Quantized]:
    """Head, embedding and learned positions by module name; one entry for head and embedding where they are tied. A
    width that the block does not divide takes the next smaller power of two that does, and tables for which none does stay
    as they are, but for the head."""
    grid = form.grid.fitted(gpt.config.n_embd)
    whole = gpt.config.n_embd % grid.block == 0
    rare = RARE.fitted(gpt.config.n_embd)

    def of_tokens(weight: Tensor, moments: Tensor | None) -> Quantized:
        if form.common is None or not whole:
            return pack_blocks(_round(weight, grid, moments), exact=form.exact)
        parts = (
            _round(weight[: form.common], grid, moments),
            _round(weight[form.common :], rare, moments),
        )
        return StackedWeights(tuple(map(pack_blocks, parts)))

    if gpt.config.n_class:
        head: Quantized = pack_blocks(_round(gpt.head.weight, grid, form.moments), exact=form.exact)
    else:
        head = of_tokens(gpt.head.weight, form.moments)
    made = {"head": head}
    if whole:
        for name, table in gpt.named_modules():  # wte, or wte.inner, and wpe
            if not isinstance(table, nn.Embedding):
                continue
            if name == "wpe":
                made[name] = pack_blocks(round_nearest(table.weight, grid))
            else:
                made[name] = head if gpt.config.head_is_embedding else of_tokens(table.weight, None)
    return made


def common_tokens(windows: Iterable[list[int]], vocab_size: int) -> int | None:
    """How many of the lowest ids make up COMMON of a text's tokens, in whole 64s; None where that leaves few others."""
    counts = torch.bincount(
        torch.tensor([token for window in windows for token in window]), minlength=vocab_size
    )
    reached = counts.cumsum(0) >= COMMON * counts.sum()
    count = -(-(int(reached.int().argmax()) + 1) // 64) * 64
    return count if count <= vocab_size * 2 // 3 else None


def kept_table(gpt: GPT) -> Grid:
    """GGUF's own grid of 8 bits (Q8_0, blocks of 32) where the head lies on it."""
    own = Grid(8, block=32).fitted(gpt.config.n_embd)
    table = gpt.head.weight
    off = (round_nearest(table, own).values() - table).abs().max() / table.abs().max()
    return own if off < 1e-4 else TABLE


def _round(weight: Tensor, grid: Grid, moments: Tensor | None) -> Rounded:
    if moments is None:
        return round_nearest(weight, grid)
    return stacked([round_gptq(rows, moments, grid) for rows in weight.split(ROWS)])
