"""gptx's PyTorch module, from which artifacts are exported: `torch:CHECKPOINT`. Quality only."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gptx.bench.engine import Engine, Job, Logits

if TYPE_CHECKING:
    import numpy as np


def start() -> None:
    import torch  # noqa: F401


def logits(job: Job) -> Logits:
    import torch

    # By name, because the runtime must not import the pipeline.
    checkpoint: Any = importlib.import_module("gptx_models.checkpoints.checkpoint")
    torch.set_num_threads(job.threads)
    model = checkpoint.load_model(job.path)

    def after_each(window: list[int]) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.tensor([window]))[0].numpy()

    return after_each


ENGINE = Engine(("torch",), "pip install torch", start, None, logits)
