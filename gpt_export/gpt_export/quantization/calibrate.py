"""Round a GPT's layers in order with GPTQ, each on the activations of the rounded layers before."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from gpt_export.quantization.gptq import Grid, Rounded, round_gptq
from gptx.errors import UsageError
from gptx.progress import stage
from gptx_models.gpt.model import GPT, Block, Cached


def linears(block: Block) -> dict[str, nn.Linear]:
    """The linear layers of a block by module name."""
    return {
        "attn.qkv": block.attn.qkv,
        "attn.out": block.attn.out,
        "mlp.up": block.mlp.up,
        "mlp.down": block.mlp.down,
    }


def round_layers(
    gpt: GPT, windows: list[list[int]], grid_for: Callable[[int], Grid]
) -> tuple[dict[str, Rounded], Tensor]:
    """Round all linear layers except the head; `gpt` gets the rounded weights.

    windows: token ids of the calibration text. grid_for(n_in) -> the grid of a layer with that
    width. Returns rounded weights by module name, and the second moments of the head's input,
    (n_embd, n_embd). Raises UsageError if activations are not finite.
    """
    each, moments = round_to_each(gpt, windows, lambda n_in: [grid_for(n_in)])
    return {name: rounded for name, (rounded,) in each.items()}, moments


@torch.no_grad()
def round_to_each(
    gpt: GPT, windows: list[list[int]], grids_for: Callable[[int], Sequence[Grid]]
) -> tuple[dict[str, list[Rounded]], Tensor]:
    """Like round_layers, but round each layer to several grids.

    `gpt` gets the weights of each layer's last grid, so the layers after it are rounded on the
    activations of these weights.
    """
    rounded: dict[str, list[Rounded]] = {}
    streams = [embedded(gpt, window) for window in windows]
    with stage("Rounding the weights", total=len(gpt.layers)) as advance:
        for index, block in enumerate(gpt.layers):
            inputs = _inputs(gpt, block, streams)
            for part, linear in linears(block).items():
                name = f"blocks.{index}.{part}"
                read = torch.cat(inputs.pop(part))
                if not read.isfinite().all():
                    raise UsageError(
                        f"{name} reads values that are not finite on the calibration text:"
                        " such weights cannot be rounded"
                    )
                moments = read.T @ read
                rounded[name] = [
                    round_gptq(linear.weight, moments, grid)
                    for grid in grids_for(linear.in_features)
                ]
                linear.weight.copy_(rounded[name][-1].values())
            streams = [(block(x, Cached(gpt, positions)), positions) for x, positions in streams]
            advance(1)
    read = torch.cat([gpt.norm(x)[0] for x, _ in streams])
    return rounded, read.T @ read


def embedded(gpt: GPT, window: list[int]) -> tuple[Tensor, Tensor]:
    """The first block's input (1, S, n_embd) for a window of S tokens, and the positions (1, S)."""
    positions = torch.arange(len(window))[None]
    return gpt.embed(torch.tensor([window]), positions), positions


def _inputs(
    gpt: GPT, block: Block, streams: list[tuple[Tensor, Tensor]]
) -> dict[str, list[Tensor]]:
    """The input of each linear layer of the block: a tensor (S, n_in) per window."""
    seen: dict[str, list[Tensor]] = {part: [] for part in linears(block)}

    def keep(part: str):
        return lambda _, args: seen[part].append(args[0][0])

    hooks = [
        linear.register_forward_pre_hook(keep(part)) for part, linear in linears(block).items()
    ]
    for x, positions in streams:
        block(x, Cached(gpt, positions))
    for hook in hooks:
        hook.remove()
    return seen
