"""Where a run computes: one process, or the several that torchrun started; on CPUs or one GPU each.

Each process takes its share of a step's rows, so any number of them trains on the same batches. DDP keeps the whole
model in each; FSDP2 (`shard`) divides weights, gradients and optimizer among them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from gptx.errors import ProviderError, UsageError
from gptx_models.training.loss import Objective


@dataclass(frozen=True)
class Processes:
    device: torch.device
    rank: int = 0
    size: int = 1
    shard: bool = False

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.rank == 0

    def total(self, value: Tensor) -> Tensor:
        """The sum of every process's `value`."""
        if self.size > 1:
            value = value.detach().clone()
            dist.all_reduce(value)
        return value

    def any(self, value: bool) -> bool:
        """Whether it is so in any process: what all of them must decide alike."""
        return bool(self.total(torch.tensor(float(value), device=self.device)) > 0)

    def from_main(self, value: float) -> float:
        """The main process's `value`: clocks differ."""
        if self.size == 1:
            return value
        told = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.broadcast(told, src=0)
        return told.item()

    def synchronize(self, model: nn.Module, now: bool) -> None:
        """Whether the next backward pass sums gradients over processes: only a step's last one needs to."""
        if self.shard:
            cast(FSDPModule, model).set_requires_gradient_sync(now)
        elif self.size > 1:
            cast(DistributedDataParallel, model).require_backward_grad_sync = now

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()


@contextmanager
def open_processes(device: str = "auto", *, shard: bool = False) -> Iterator[Processes]:
    """This run's processes. device: "cpu", "cuda", or "auto": CUDA where it works. Raises ProviderError, UsageError."""
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    place = _device(device, int(os.environ.get("LOCAL_RANK", 0)))
    if shard and size == 1:
        raise UsageError(
            "--shard divides the model among processes: start it with torchrun --nproc-per-node N"
        )
    if size == 1:
        yield Processes(place)
        return
    if place.type == "cuda":
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield Processes(place, rank, size, shard)
    finally:
        dist.destroy_process_group()


def leave(processes: Processes) -> None:
    """End this process, if it is one of several, with all done: what gloo's and autograd's threads still hold may take the
    interpreter's lock while it is torn down, which aborts the process (twice in some fifty runs of two on a busy machine;
    pytorch #179291), and torchrun then ends those that are still writing."""
    if processes.size > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _device(name: str, local_rank: int) -> torch.device:
    if name == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda", local_rank)
    if name == "cuda":
        built = f"this PyTorch ({torch.__version__}) is built without it"
        why = "PyTorch finds no GPU or driver" if torch.backends.cuda.is_built() else built
        raise ProviderError(
            f"asked to train on CUDA, and {why}: see nvidia-smi, or take --device cpu"
        )
    return torch.device("cpu")


def parallelize(objective: Objective, processes: Processes) -> nn.Module:
    """The objective wrapped in DDP or FSDP2 where several processes run it: gradients are then averaged."""
    if processes.size == 1:
        return objective
    if not processes.shard:
        return DistributedDataParallel(objective)
    for block in objective.gpt.blocks:
        fully_shard(block)
    return cast(nn.Module, fully_shard(objective))
