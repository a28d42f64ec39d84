"""gptx, by its step-level API: `gptx:ARTIFACT`."""

from __future__ import annotations

import time
from collections.abc import Iterator

from gptx.bench.engine import BatchRun, Engine, Job, Loaded, Logits, Run, timed


def start() -> None:
    from gptx.model import load  # noqa: F401
    from gptx.providers import onnxruntime

    onnxruntime()  # gptx imports it late; the libraries of other engines come whole when they are imported


def load(job: Job) -> Loaded:
    import gptx

    model = gptx.load(job.path, threads=job.threads)

    def tokens(prompt: list[int], n: int) -> Iterator[int]:
        with model.session() as session:
            token = int(session.feed([prompt])[0].argmax())
            yield token
            for _ in range(n):
                token = int(session.feed([[token]])[0].argmax())
                yield token

    def generate(prompt: list[int], n: int) -> Run:
        return timed(tokens(prompt, n))

    def batch(prompts: list[list[int]], n: int) -> BatchRun:
        with model.session(len(prompts)) as session:
            steps = [session.feed(prompts).argmax(-1).tolist()]
            began = time.perf_counter()
            for _ in range(n):
                steps.append(session.feed([[token] for token in steps[-1]]).argmax(-1).tolist())
            return BatchRun(time.perf_counter() - began, [list(row) for row in zip(*steps)])

    return Loaded(generate, batch)


def logits(job: Job) -> Logits:
    import gptx
    from gptx.verify import forced_logits

    model = gptx.load(job.path, threads=job.threads)
    return lambda window: forced_logits(model, window)


ENGINE = Engine(
    ("gptx-edge", "onnxruntime", "onnxruntime-gpu"), "pip install gptx-edge", start, load, logits, takes_artifact=True
)
