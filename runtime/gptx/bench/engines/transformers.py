"""transformers on PyTorch: `transformers:CHECKPOINT`, in fp32, or `transformers:CHECKPOINT:bfloat16`.

A loop of our own around the model and its DynamicCache, which is faster than generate() with its checks at every token.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gptx.bench.engine import Engine, Job, Loaded, Logits, Run, timed

if TYPE_CHECKING:
    import numpy as np


def start() -> None:
    import torch  # noqa: F401
    from transformers import AutoModelForCausalLM, DynamicCache  # noqa: F401


def _opened(job: Job) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(job.threads)
    return AutoModelForCausalLM.from_pretrained(job.path, dtype=getattr(torch, job.variant or "float32")).eval()


def load(job: Job) -> Loaded:
    import torch
    from transformers import DynamicCache

    model = _opened(job)

    def tokens(prompt: list[int], n: int) -> Iterator[int]:
        cache, new = DynamicCache(config=model.config), torch.tensor([prompt])
        for _ in range(n + 1):
            logits = model(new, past_key_values=cache, use_cache=True, logits_to_keep=1).logits  # (1, 1, V)
            logits[..., job.ends] = -torch.inf
            new = logits[0].argmax(-1, keepdim=True)  # (1, 1)
            yield int(new)

    def generate(prompt: list[int], n: int) -> Run:
        with torch.inference_mode():
            return timed(tokens(prompt, n))

    return Loaded(generate)


def logits(job: Job) -> Logits:
    import torch

    model = _opened(job)

    def after_each(window: list[int]) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.tensor([window]), use_cache=False).logits[0].float().numpy()

    return after_each


ENGINE = Engine(("transformers", "torch"), "pip install transformers torch", start, load, logits, takes_variant=True)
