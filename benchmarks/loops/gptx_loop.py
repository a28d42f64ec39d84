"""gptx's own loop, as `gptx train` runs it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from lesson import BETAS, CLIP, WEIGHT_DECAY, Batch, Lesson, main

from gptx_models.checkpoints.hf_names import LAYOUTS
from gptx_models.checkpoints.tensor_source import TensorSource
from gptx_models.checkpoints.weights import build
from gptx_models.gpt.config import GPTConfig
from gptx_models.gpt.model import GPT
from gptx_models.training.distributed import Processes
from gptx_models.training.loop import TrainingData, loop
from gptx_models.training.recipe import Recipe


def train(lesson: Lesson, batch: Callable[[int], Batch]) -> float:
    recipe = Recipe(
        model=lesson.shape,
        steps=lesson.all_steps,
        batch_size=lesson.batch_size,
        learning_rate=lesson.learning_rate,
        schedule="constant",
        warmup=0,
        weight_decay=WEIGHT_DECAY,
        beta1=BETAS[0],
        beta2=BETAS[1],
        clip=CLIP,
        precision=lesson.precision,  # type: ignore[arg-type]
        compile=lesson.compile,
        eval_every=lesson.all_steps,  # once, after the clock has stopped
    )
    gpt = begun(lesson)
    data = TrainingData(batch, lesson.held_out)
    with tempfile.TemporaryDirectory(prefix="gptx-loop-") as run:
        processes = Processes(torch.device(lesson.device))
        return loop(gpt, data, recipe, Path(run), processes, on_eval=lambda *_: None).val_loss


def begun(lesson: Lesson) -> GPT:
    tensors = lesson.weights()
    source = TensorSource(
        "the lesson", {name: tuple(t.shape) for name, t in tensors.items()}, tensors.__getitem__
    )
    return build(GPTConfig.from_dict(lesson.shape), LAYOUTS["gpt2"], source)


if __name__ == "__main__":
    main(train)
