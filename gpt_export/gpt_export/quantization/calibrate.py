"""Round a GPT's layers one after the other, each on what the rounded layers before it make of the calibration text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from gpt_export.quantization.gptq import Grid, Rounded, round_gptq
from gptx.errors import UsageError
from gptx.progress import stage
from gptx_models.gpt.model import GPT, Block, Cached


def linears(block: Block) -> dict[str, nn.Linear]:
    return {
        "attn.qkv": block.attn.qkv,
        "attn.out": block.attn.out,
        "mlp.up": block.mlp.up,
        "mlp.down": block.mlp.down,
    }


def round_layers(
    gpt: GPT, windows: list[list[int]], grid_for: Callable[[int], Grid]
) -> tuple[dict[str, Rounded], Tensor]:
    """GPTQ of every linear layer but the head, to the grid for its n_in; the module's own weights become what they are
    rounded to. And the second moments of what the head reads then, (n_embd, n_embd)."""
    each, moments = round_to_each(gpt, windows, lambda n_in: [grid_for(n_in)])
    return {name: rounded for name, (rounded,) in each.items()}, moments


@torch.no_grad()
def round_to_each(
    gpt: GPT, windows: list[list[int]], grids_for: Callable[[int], Sequence[Grid]]
) -> tuple[dict[str, list[Rounded]], Tensor]:
    """The same to several grids a layer; the module's own weights, and so what later layers read, become the last one's."""
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
                        f"{name} reads values that are not finite on the calibration text: such weights cannot be rounded"
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
    """What the first block reads, (1, S, n_embd), and the positions."""
    positions = torch.arange(len(window))[None]
    return gpt.embed(torch.tensor([window]), positions), positions


def _inputs(
    gpt: GPT, block: Block, streams: list[tuple[Tensor, Tensor]]
) -> dict[str, list[Tensor]]:
    """What each of the block's linears reads, a (S, n_in) for each window."""
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
