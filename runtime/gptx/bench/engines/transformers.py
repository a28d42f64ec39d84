"""transformers on PyTorch: `transformers:CHECKPOINT[:bfloat16]`, in fp32 if no type is given.

The decode loop is ours, around the model and its DynamicCache. It is faster than generate(), which
runs checks at every token.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from gptx.bench.engine import BatchRun, Engine, Job, Loaded, Logits, Run, timed

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


def start() -> None:
    import torch  # noqa: F401
    from transformers import AutoModelForCausalLM, DynamicCache  # noqa: F401


def opened(job: Job) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(job.threads)
    model: Any = AutoModelForCausalLM.from_pretrained(
        job.path, dtype=getattr(torch, job.variant or "float32")
    )
    return model.to(job.device).eval()


def load(job: Job) -> Loaded:
    import torch
    from transformers import DynamicCache

    model = opened(job)

    def steps(prompts: list[list[int]], n: int) -> Iterator[Tensor]:
        """Yield the new token of each row, (B, 1), n + 1 times. The prompts have one length."""
        cache, new = DynamicCache(config=model.config), torch.tensor(prompts, device=job.device)
        for _ in range(n + 1):
            logits = model(
                new, past_key_values=cache, use_cache=True, logits_to_keep=1
            ).logits  # (B, 1, V)
            new = picked(logits, job.ends)
            yield new

    return in_turn(steps)


def picked(logits: Tensor, ends: list[int]) -> Tensor:
    """Logits (B, 1, V) -> the most likely tokens (B, 1) that are not end-of-text ones."""
    logits[..., ends] = -float("inf")
    return logits.argmax(-1)


def in_turn(steps: Callable[[list[list[int]], int], Iterator[Tensor]]) -> Loaded:
    """Make a Loaded from `steps`: (prompts, n) -> the new tokens (B, 1), n + 1 times."""
    import torch

    def generate(prompt: list[int], n: int) -> Run:
        with torch.inference_mode():
            return timed(int(new) for new in steps([prompt], n))

    def batch(prompts: list[list[int]], n: int) -> BatchRun:
        with torch.inference_mode():
            every = steps(prompts, n)
            rows = [next(every).tolist()]
            began = time.perf_counter()
            rows += [new.tolist() for new in every]
            return BatchRun(
                time.perf_counter() - began, [[token for (token,) in row] for row in zip(*rows)]
            )

    return Loaded(generate, batch)


def logits(job: Job) -> Logits:
    import torch

    model = opened(job)

    def after_each(window: list[int]) -> np.ndarray:
        with torch.inference_mode():
            ids = torch.tensor([window], device=job.device)
            return model(ids, use_cache=False).logits[0].float().cpu().numpy()

    return after_each


ENGINE = Engine(
    ("transformers", "torch"),
    "pip install transformers torch",
    start,
    load,
    logits,
    takes_variant=True,
    devices=("cpu", "cuda"),
)
