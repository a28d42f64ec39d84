"""The processes of a run: one, or those that torchrun started, each on a CPU or a GPU of its own.

Each process takes its share of a step's rows, so any number of them trains on the same batches.
DDP keeps the whole model in each process. FSDP2 (`shard`) divides weights, gradients and optimizer
states among them.
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
from gptx_models.training.recipe import Recipe


@dataclass(frozen=True)
class Processes:
    """This process, and how many the run has: torch.distributed's rank and world size."""

    device: torch.device
    rank: int = 0
    size: int = 1
    shard: bool = False

    @property
    def is_main(self) -> bool:
        """True in the process that prints and writes files."""
        return self.rank == 0

    def total(self, value: Tensor) -> Tensor:
        """The sum of `value` over the processes."""
        if self.size > 1:
            value = value.detach().clone()
            dist.all_reduce(value)
        return value

    def any(self, value: bool) -> bool:
        """True if `value` is true in any process (all processes then take the same branch)."""
        return bool(self.total(torch.tensor(float(value), device=self.device)) > 0)

    def from_main(self, value: float) -> float:
        """The `value` of the main process, in every process.

        Needed for values that differ between processes, as clocks do.
        """
        if self.size == 1:
            return value
        sent = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.broadcast(sent, src=0)
        return sent.item()

    def sync_gradients(self, model: nn.Module, sync: bool) -> None:
        """Set whether the next backward pass averages gradients over the processes.

        Only the last backward pass of a step needs to.
        """
        if self.shard:
            cast(FSDPModule, model).set_requires_gradient_sync(sync)
        elif self.size > 1:
            cast(DistributedDataParallel, model).require_backward_grad_sync = sync

    def wait(self) -> None:
        """Wait until every process has come here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def open_processes(device: str = "auto", *, shard: bool = False) -> Iterator[Processes]:
    """The processes of this run, as torchrun's environment variables describe them.

    device: "cpu", "cuda", or "auto" for CUDA if it works. Raises ProviderError if CUDA is asked for
    and does not work, and UsageError if `shard` is asked for in a single process.
    """
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


def exit_process(processes: Processes) -> None:
    """End this process at once if it is one of several. Call it when all work is done.

    A normal exit can abort the process: threads of gloo and autograd ask for the interpreter's lock
    while the interpreter is torn down (pytorch #179291; twice in some fifty runs of two processes
    on a busy machine). torchrun then kills the other processes, which may still be writing.
    """
    if processes.size > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def check_processes(recipe: Recipe, processes: Processes) -> None:
    """Raise UsageError for a recipe that these processes cannot train."""
    if processes.shard and (recipe.optimizer == "muon" or recipe.precision == "fp16"):
        raise UsageError(
            "--shard goes with optimizer adamw and precision bf16 or fp32: Muon needs whole"
            " matrices"
        )
    if recipe.batch_size % (recipe.accumulate * processes.size):
        shares = f"{processes.size} processes" if processes.size > 1 else ""
        pieces = f"{recipe.accumulate} pieces" if recipe.accumulate > 1 else ""
        among = " times ".join(filter(None, (shares, pieces)))
        raise UsageError(f"batch_size {recipe.batch_size} does not divide into {among}")


def parallelize(objective: Objective, processes: Processes) -> nn.Module:
    """Wrap the objective in DDP or FSDP2, which average gradients over the processes.

    A single process gets the objective itself.
    """
    if processes.size == 1:
        return objective
    if not processes.shard:
        return DistributedDataParallel(objective)
    for block in objective.gpt.blocks:
        fully_shard(block)
    return cast(nn.Module, fully_shard(objective))


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
