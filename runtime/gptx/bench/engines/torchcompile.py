"""transformers with StaticCache and torch.compile: `torchcompile:CHECKPOINT[:float16]`.

This is PyTorch's fastest decode loop. The prompt is not compiled. A decode step is one compiled
function on fixed buffers, and on CUDA a CUDA graph. Compiling takes a minute, during the warm-up.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gptx.bench.engine import Engine, Job, Loaded
from gptx.bench.engines.transformers import in_turn, opened, picked

if TYPE_CHECKING:
    from torch import Tensor


def start() -> None:
    import torch  # noqa: F401
    from transformers import AutoModelForCausalLM, StaticCache  # noqa: F401


def load(job: Job) -> Loaded:
    import torch
    from transformers import StaticCache

    model = opened(job)
    caches: dict[int, Any] = {}  # by number of rows

    def forward(new: Tensor, at: Tensor, cache: Any) -> Tensor:
        return model(
            new, past_key_values=cache, cache_position=at, use_cache=True, logits_to_keep=1
        ).logits

    mode = "reduce-overhead" if job.device == "cuda" else "default"
    step = torch.compile(forward, mode=mode, fullgraph=True, dynamic=False)

    def steps(prompts: list[list[int]], n: int) -> Iterator[Tensor]:
        cache = caches.setdefault(
            len(prompts), StaticCache(config=model.config, max_cache_len=job.context)
        )
        cache.reset()
        new = torch.tensor(prompts, device=job.device)
        at = torch.arange(new.shape[1], device=job.device)
        new = picked(forward(new, at, cache), job.ends)
        yield new
        at = at[-1:] + 1
        for _ in range(n):
            new = picked(step(new, at, cache).clone(), job.ends)
            yield new
            at += 1

    return in_turn(steps)


ENGINE = Engine(
    ("transformers", "torch"),
    "pip install transformers torch",
    start,
    load,
    None,
    takes_variant=True,
    devices=("cpu", "cuda"),
)
