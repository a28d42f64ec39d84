"""gptx, by its step-level API: `gptx:ARTIFACT`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from gptx.bench.engine import BatchRun, Engine, Job, Loaded, Logits, Run, timed

if TYPE_CHECKING:
    import numpy as np


def start() -> None:
    from gptx.model import load  # noqa: F401
    from gptx.ort.library import onnxruntime

    # gptx imports ONNX Runtime when it loads a model. Other engines import all of themselves here.
    onnxruntime()


def load(job: Job) -> Loaded:
    import numpy as np

    import gptx
    from gptx.system import huge_pages

    # Move the weights into huge pages during the warm-up, as in a process that has run for a while.
    huge_pages.MOVE_AFTER = 8
    model = gptx.load(job.path, device=job.device, threads=job.threads)

    def picked(logits: np.ndarray) -> list[int]:  # (B, V)
        logits[:, job.ends] = -np.inf
        return logits.argmax(-1).tolist()

    def tokens(prompt: list[int], n: int) -> Iterator[int]:
        with model.session() as session:
            new = prompt
            for _ in range(n + 1):
                new = picked(session.feed([new]))
                yield new[0]

    def generate(prompt: list[int], n: int) -> Run:
        return timed(tokens(prompt, n))

    def batch(prompts: list[list[int]], n: int) -> BatchRun:
        with model.session(len(prompts)) as session:
            steps = [picked(session.feed(prompts))]
            began = time.perf_counter()
            for _ in range(n):
                steps.append(picked(session.feed([[token] for token in steps[-1]])))
            return BatchRun(time.perf_counter() - began, [list(row) for row in zip(*steps)])

    return Loaded(generate, batch)


def logits(job: Job) -> Logits:
    import gptx
    from gptx.verify import forced_logits

    model = gptx.load(job.path, device=job.device, threads=job.threads)
    return lambda window: forced_logits(model, window)


ENGINE = Engine(
    ("gptx-edge", "onnxruntime", "onnxruntime-gpu"),
    "pip install gptx-edge",
    start,
    load,
    logits,
    takes_artifact=True,
    devices=("cpu", "cuda"),
)
