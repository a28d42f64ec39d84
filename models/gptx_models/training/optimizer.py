"""The optimizers of a recipe: which parameter is updated by what, and which decay."""

from __future__ import annotations

from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer

from gptx_models.gpt.model import GPT
from gptx_models.training.recipe import Recipe


def optimizers_of(gpt: GPT, recipe: Recipe) -> list[Optimizer]:
    """AdamW for everything, or, with `muon`, Muon (Jordan et al. 2024) for the matrices inside the blocks and AdamW for
    the rest. Matrices decay, gains and biases don't. Parameters that require no gradient are left out.

    Muon's steps are scaled to the size of AdamW's (Liu et al. 2025, section 2.2), so one learning rate serves both.
    """
    named = {
        name: parameter for name, parameter in gpt.named_parameters() if parameter.requires_grad
    }
    inner: list[Tensor] = []
    if recipe.optimizer == "muon":
        inner = [
            named.pop(name)
            for name in list(named)
            if name.startswith("blocks.") and named[name].ndim == 2
        ]
    matrices = [parameter for parameter in named.values() if parameter.ndim >= 2]
    rest = [parameter for parameter in named.values() if parameter.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    adamw = AdamW(
        [g for g in groups if g["params"]], betas=(recipe.beta1, recipe.beta2), fused=True
    )
    if not inner:
        return [adamw]
    muon = Muon(
        inner,
        weight_decay=recipe.weight_decay,
        momentum=0.95,
        nesterov=True,
        adjust_lr_fn="match_rms_adamw",
    )
    return [muon, adamw]


def set_learning_rate(optimizers: list[Optimizer], learning_rate: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
