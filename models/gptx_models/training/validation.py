"""The loss on the validation batches, and the result of an evaluation. Knows no files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from gptx_models.evaluation.metrics import bits_per_byte
from gptx_models.training.distributed import Processes
from gptx_models.training.loss import IGNORED, Objective
from gptx_models.training.recipe import Recipe
from gptx_models.training.run_state import Progress
from gptx_models.training.step import Batch, autocast, to_device


@dataclass(frozen=True)
class EvalResult:
    """How far a run has come, and its losses in nats per token."""

    steps: int
    tokens: int
    train_loss: float | None  # mean since the last evaluation; None: no step was run
    val_loss: float
    bits_per_byte: (
        float | None
    )  # of the validation text; unlike a loss, comparable across tokenizers
    seconds: float
    best: bool = True  # no earlier evaluation had a lower val_loss

    def __str__(self) -> str:
        bits = "" if self.bits_per_byte is None else f" ({self.bits_per_byte:.4f} bits a byte)"
        trained = "" if self.train_loss is None else f"loss {self.train_loss:.4f}, "
        return f"{trained}validation {self.val_loss:.4f}{bits}"


def eval_result(
    progress: Progress,
    train_loss: float | None,
    val_loss: float,
    bytes_per_token: float | None,
    *,
    best: bool,
) -> EvalResult:
    bits = bits_per_byte(val_loss, bytes_per_token) if bytes_per_token else None
    return EvalResult(
        progress.step, progress.tokens, train_loss, val_loss, bits, progress.seconds, best
    )


@torch.no_grad()
def validation_loss(
    objective: Objective, batches: Iterable[Batch], recipe: Recipe, processes: Processes
) -> float:
    """The mean loss of the batches, in nats per target that is not IGNORED.

    Leaves the objective in eval mode.
    """
    objective.eval()
    total, count = torch.zeros((), dtype=torch.float64), 0
    mine = slice(processes.rank, None, processes.size)
    for inputs, targets in batches:
        with autocast(recipe, processes):
            loss = objective(
                to_device(inputs[mine], processes.device),
                to_device(targets[mine], processes.device),
            )
        total += loss.item()
        count += int((targets != IGNORED).sum())
    return float(processes.total(total.float().to(processes.device))) / count
