"""The state of a run on the disk (state.pt), from which it resumes with the same losses.

The file is written whole or not at all. It holds no position in the data and no state of a random
generator: the batch and the dropout of a step depend only on the seed and the number of the step.
It does not depend on the number of processes either.
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
    since_best: int = 0  # evaluations since the best one
    scale: float = 2.0**16  # GradScaler's, for fp16


def write_state(
    folder: Path, gpt: GPT, optimizers: list[Optimizer], progress: Progress, processes: Processes
) -> None:
    """Write the state, without frozen weights. All processes call this; the main one writes."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    model, optimizer = get_state_dict(gpt, optimizers, options=options)
    # torch keeps a frozen tied weight in `model` under its second name, so it is removed here.
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
    """Load the state in `folder` into the model and the optimizers; return the progress.

    Returns None if there is no state. Raises CheckpointError if it cannot be read.
    """
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
    except Exception as error:  # torch raises many types, and names no file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{file} cannot be read ({reason:.200}): begin again with --force"
        ) from error


def full_weights(gpt: GPT, processes: Processes) -> GPT:
    """The whole model in fp32 on the CPU; all processes call this.

    It is `gpt` itself if `gpt` is on the CPU and no other process holds a part of it.
    """
    if not processes.shard and processes.device.type == "cpu":
        return gpt
    weights, _ = get_state_dict(
        gpt, [], options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    whole = copy_of_shape(gpt)
    if processes.is_main:
        whole.load_state_dict(weights)
    return whole
