"""llama.cpp by llama-cpp-python: `llamacpp:FILE.gguf`. The features of its build are reported."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gptx.bench.engine import Engine, Job, Loaded, Logits, timed

if TYPE_CHECKING:
    import numpy as np


def start() -> Any:
    return importlib.import_module("llama_cpp")


def _opened(job: Job, *, logits_all: bool) -> Any:
    return start().Llama(
        str(job.path),
        n_ctx=job.context,
        n_threads=job.threads,
        n_threads_batch=job.threads,
        logits_all=logits_all,
        verbose=False,
    )


def load(job: Job) -> Loaded:
    import numpy as np

    llama_cpp = start()
    model = _opened(job, logits_all=False)
    n_vocab = model.n_vocab()

    def tokens(prompt: list[int], n: int) -> Iterator[int]:
        model.reset()
        new = prompt
        for _ in range(n + 1):
            model.eval(new)
            logits = np.ctypeslib.as_array(
                llama_cpp.llama_get_logits_ith(model.ctx, -1), (n_vocab,)
            )
            logits[job.ends] = -np.inf
            new = [int(logits.argmax())]
            yield new[0]

    return Loaded(lambda prompt, n: timed(tokens(prompt, n)))


def logits(job: Job) -> Logits:
    import numpy as np

    model = _opened(job, logits_all=True)

    def after_each(window: list[int]) -> np.ndarray:
        model.reset()
        model.eval(window)
        return np.array(model.scores[: len(window)], np.float32)

    return after_each


def notes() -> str:
    return start().llama_print_system_info().decode().strip()


ENGINE = Engine(
    ("llama-cpp-python",), "pip install llama-cpp-python", start, load, logits, notes=notes
)
