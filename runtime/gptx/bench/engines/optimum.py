"""optimum-onnx's ORTModelForCausalLM: `optimum:ARTIFACT`.

The decode loop is ours, around its forward and cache, as for transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gptx.bench.engine import Engine, Job, Loaded, Logits, Run, timed

if TYPE_CHECKING:
    import numpy as np


def start() -> None:
    import torch  # noqa: F401
    from optimum.onnxruntime import ORTModelForCausalLM  # noqa: F401


def _opened(job: Job) -> Any:
    import onnxruntime
    import torch
    from optimum.onnxruntime import ORTModelForCausalLM

    torch.set_num_threads(job.threads)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    return ORTModelForCausalLM.from_pretrained(job.path, session_options=options)


def load(job: Job) -> Loaded:
    import torch

    model = _opened(job)

    def tokens(prompt: list[int], n: int) -> Iterator[int]:
        past, new, length = None, torch.tensor([prompt]), 0
        for _ in range(n + 1):
            length += new.shape[1]
            mask = torch.ones(1, length, dtype=torch.int64)
            output = model(input_ids=new, attention_mask=mask, past_key_values=past, use_cache=True)
            past, logits = output.past_key_values, output.logits[:, -1]  # (1, V)
            logits[:, job.ends] = -torch.inf
            new = logits.argmax(-1, keepdim=True)  # (1, 1)
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
            mask = torch.ones(1, len(window), dtype=torch.int64)
            return (
                model(input_ids=torch.tensor([window]), attention_mask=mask)
                .logits[0]
                .float()
                .numpy()
            )

    return after_each


ENGINE = Engine(
    ("optimum-onnx", "onnxruntime", "transformers", "torch"),
    "pip install optimum-onnx",
    start,
    load,
    logits,
    takes_artifact=True,
)
