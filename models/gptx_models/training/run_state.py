"""A run's state on disk: what a killed run needs to go on with the same losses, written whole or not at all.

A step's batch and dropout depend on the seed and the step's number alone, so there is no position or generator to keep.
The state does not depend on how many processes wrote it.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.optim import Optimizer

from gptx.errors import CheckpointError
from gptx_models.adapters.lora import copy_of_shape
from gptx_models.gpt.model import GPT
from gptx_models.training.distributed import Processes

STATE = "state.pt"


@dataclass
class Progress:
    """How far a run has come."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best: float = float("inf")  # lowest validation loss
    since_best: int = 0  # evaluations since then
    scale: float = 2.0**16  # of fp16's losses


def write_state(
    folder: Path, gpt: GPT, optimizers: list[Optimizer], progress: Progress, processes: Processes
) -> None:
    """Every process calls it; the main one writes. Weights that are not trained are left out."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    model, optimizer = get_state_dict(gpt, optimizers, options=options)
    # torch leaves a tied weight in under its second name, frozen or not
    trained = {name for name, p in gpt.named_parameters(remove_duplicate=False) if p.requires_grad}
    model = {name: value for name, value in model.items() if name in trained}
    if processes.is_main:
        part = folder / f"{STATE}.part"
        with open(part, "wb") as file:
            torch.save({"model": model, "optimizer": optimizer, "progress": asdict(progress)}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, folder / STATE)
    processes.wait()


def read_state(folder: Path, gpt: GPT, optimizers: list[Optimizer]) -> Progress | None:
    """Load what `folder` holds; None where there is no state. Raises CheckpointError."""
    file = folder / STATE
    if not file.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        options = StateDictOptions(
            full_state_dict=True, strict=all(p.requires_grad for p in gpt.parameters())
        )
        set_state_dict(
            gpt,
            optimizers,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
            options=options,
        )
        return Progress(**state["progress"])
    except Exception as error:  # torch names neither the file nor what to do
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{file} cannot be read ({reason:.200}): begin again with --force"
        ) from error


def full_weights(gpt: GPT, processes: Processes) -> GPT:
    """The whole model, in fp32 on the CPU: `gpt` itself where no other process holds a part. All processes call it."""
    if not processes.shard and processes.device.type == "cpu":
        return gpt
    weights, _ = get_state_dict(
        gpt, [], options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    whole = copy_of_shape(gpt)
    if processes.is_main:
        whole.load_state_dict(weights)
    return whole
