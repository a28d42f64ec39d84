"""The optimizers of a recipe: which one updates each parameter, and which parameters decay."""

from __future__ import annotations

import torch
from torch.nn import Parameter
from torch.optim import AdamW, Optimizer

from gptx_models.gpt.model import GPT
from gptx_models.training.muon import Muon
from gptx_models.training.precision import has_fast_bf16
from gptx_models.training.recipe import Recipe


def optimizers_of(gpt: GPT, recipe: Recipe) -> list[Optimizer]:
    """The optimizers of all parameters that require a gradient.

    adamw: AdamW for all of them. muon: Muon for the matrices in the blocks, AdamW for the rest.
    Matrices decay; gains and biases do not.
    """
    named = {name: p for name, p in gpt.named_parameters() if p.requires_grad}
    inner: list[Parameter] = []
    if recipe.optimizer == "muon":
        chosen = [name for name, p in named.items() if name.startswith("blocks.") and p.ndim == 2]
        inner = [named.pop(name) for name in chosen]
    adamw = _adamw(list(named.values()), recipe)
    if not inner:
        return [adamw]
    dtype = torch.bfloat16 if has_fast_bf16(inner[0].device) else torch.float32
    return [Muon(inner, weight_decay=recipe.weight_decay, dtype=dtype), adamw]


def _adamw(parameters: list[Parameter], recipe: Recipe) -> AdamW:
    matrices = [p for p in parameters if p.ndim >= 2]
    rest = [p for p in parameters if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return AdamW(groups, betas=(recipe.beta1, recipe.beta2), fused=True)


def set_learning_rate(optimizers: list[Optimizer], learning_rate: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
