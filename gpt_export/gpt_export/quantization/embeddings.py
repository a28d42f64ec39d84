"""Quantize the tables: head, token embedding, and learned positions.

They take 8 bits. To save memory and time, the rows of rare tokens can take 4. Tokenizers give low
ids to frequent tokens, so the rare tokens are the ids from some number on. Their rounding errors
matter less, because their rows are rarely read: SmolLM2's last 41,000 of 49,152 tokens in 4 bits
cost a mean KL of 0.007, all of them 0.022.

The head is rounded by GPTQ, together with a tied embedding; the other tables to the nearest level.
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

# With blocks of 64, a row's result does not depend on how many rows are computed together (see
# recipes.py). A head that is all in 4 bits makes a GPT repeat itself (onnxruntime issue 24384).
TABLE = Grid(8, block=64)
# symmetric, because GatherBlockQuantized and MatMulNBits pack zero points differently
RARE = Grid(4, block=32, scale_bits=8)
COMMON = 0.85  # share of the calibration text's tokens whose rows stay in 8 bits
ROWS = 1 << 14  # rows of a head that are rounded at a time; all at once would take gigabytes


@dataclass(frozen=True)
class Form:
    """How tables are quantized.

    common: number of rows with `grid`; the rows after them have the grid RARE. None: all have
    `grid`. exact: the head's activations have more than 8 bits. moments: second moments of the
    head's input (n_embd, n_embd), for GPTQ; None: the head is rounded to the nearest level.
    """

    grid: Grid = TABLE
    common: int | None = None
    exact: bool = False
    moments: Tensor | None = None


def tables(gpt: GPT, form: Form) -> dict[str, Quantized]:
    """Quantize head, embedding and learned positions; returns them by module name.

    A tied embedding is the same object as the head. If no block size from grid.block down to 16
    divides n_embd, only the head is quantized.
    """
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
    """Number of lowest ids that cover the share COMMON of a text, rounded up to a multiple of 64.

    None if these are more than two thirds of the vocabulary, and little would be saved.
    """
    counts = torch.bincount(
        torch.tensor([token for window in windows for token in window]), minlength=vocab_size
    )
    reached = counts.cumsum(0) >= COMMON * counts.sum()
    count = -(-(int(reached.int().argmax()) + 1) // 64) * 64
    return count if count <= vocab_size * 2 // 3 else None


def kept_table(gpt: GPT) -> Grid:
    """The grid of GGUF's Q8_0 (8 bits, blocks of 32) if the head lies on it, else TABLE."""
    own = Grid(8, block=32).fitted(gpt.config.n_embd)
    table = gpt.head.weight
    off = (round_nearest(table, own).values() - table).abs().max() / table.abs().max()
    return own if off < 1e-4 else TABLE


def _round(weight: Tensor, grid: Grid, moments: Tensor | None) -> Rounded:
    if moments is None:
        return round_nearest(weight, grid)
    return stacked([round_gptq(rows, moments, grid) for rows in weight.split(ROWS)])
