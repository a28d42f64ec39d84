"""One training step: forward and backward over the pieces of a batch, then the optimizers.

Knows no schedule, no evaluation and no files.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gptx_models.training.distributed import Processes
from gptx_models.training.loss import IGNORED
from gptx_models.training.recipe import Recipe

# inputs and targets, each (B, S) int64; a target of IGNORED adds nothing to the loss
Batch = tuple[Tensor, Tensor]


def forward_backward(
    model: nn.Module,
    scaler: torch.GradScaler,
    batch: Batch,
    recipe: Recipe,
    processes: Processes,
    step: int,
) -> Tensor:
    """Add the gradient of the batch's mean loss; return this process's part of the loss: ().

    The mean is over the targets of the whole batch, so neither `accumulate` nor the number of
    processes changes it.
    """
    # The seed of the dropout depends on the step, so a resumed step repeats its first attempt.
    torch.manual_seed((recipe.seed << 32) + step * processes.size + processes.rank)
    inputs, targets = batch
    n_targets = int((targets != IGNORED).sum())
    mine = slice(processes.rank, None, processes.size)
    pieces = list(
        zip(inputs[mine].chunk(recipe.accumulate), targets[mine].chunk(recipe.accumulate))
    )
    model.train()
    loss = torch.zeros((), device=processes.device)
    for number, piece in enumerate(pieces, 1):
        processes.sync_gradients(model, number == len(pieces))
        with autocast(recipe, processes):
            part = model(*(to_device(ids, processes.device) for ids in piece)) / n_targets
        # DDP and FSDP average gradients over the processes. The parts must be summed, so each is
        # multiplied by the number of processes.
        scaler.scale(part * processes.size).backward()
        loss += part.detach()
    return loss


def optimizer_step(
    model: nn.Module, optimizers: list[Optimizer], scaler: torch.GradScaler, *, clip: float
) -> Tensor:
    """Clip the gradient, update the weights, and return the norm of the gradient before clipping.

    fp16: the scaler skips the update if a gradient is infinite or not a number.
    """
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
    for optimizer in optimizers:
        scaler.step(optimizer)
        optimizer.zero_grad()
    scaler.update()
    return norm


def autocast(recipe: Recipe, processes: Processes) -> torch.autocast:
    """Matrix products in the recipe's precision, which is not "auto"; weights stay fp32."""
    kinds = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
    dtype = kinds[recipe.precision]
    return torch.autocast(processes.device.type, dtype, enabled=dtype is not None)


def to_device(ids: Tensor, device: torch.device) -> Tensor:
    return ids.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else ids
