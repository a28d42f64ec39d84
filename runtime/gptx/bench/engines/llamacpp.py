"""llama.cpp by llama-cpp-python: `llamacpp:FILE.gguf`. The features of its build are reported.

Rows are decoded together by llama.cpp's C functions, in a context of their own: llama-cpp-python
has a class for one row only.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gptx.bench.engine import BatchRun, Engine, Job, Loaded, Logits, timed

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

    def picked(context: Any, token: int) -> int:  # of the logits after this token of the last run
        pointer = llama_cpp.llama_get_logits_ith(context, token)
        logits = np.ctypeslib.as_array(pointer, (n_vocab,))
        logits[job.ends] = -np.inf
        return int(logits.argmax())

    def tokens(prompt: list[int], n: int) -> Iterator[int]:
        model.reset()
        new = prompt
        for _ in range(n + 1):
            model.eval(new)
            new = [picked(model.ctx, -1)]
            yield new[0]

    def batch(prompts: list[list[int]], n: int) -> BatchRun:
        params = llama_cpp.llama_context_default_params()
        params.n_seq_max, params.n_ctx = len(prompts), len(prompts) * job.context
        params.n_batch = max(len(prompts), *map(len, prompts))
        params.n_threads = params.n_threads_batch = job.threads
        context = llama_cpp.llama_init_from_model(model.model, params)
        step = llama_cpp.llama_batch_init(params.n_batch, 0, 1)

        def run(new: list[tuple[int, int, int]]) -> list[int]:  # (row, position, token) of each
            step.n_tokens = len(new)
            for i, (row, position, token) in enumerate(new):
                step.token[i], step.pos[i] = token, position
                step.n_seq_id[i], step.seq_id[i][0] = 1, row
                step.logits[i] = i + 1 == len(new) or new[i + 1][0] != row
            if llama_cpp.llama_decode(context, step):
                raise RuntimeError("llama_decode failed")
            return [picked(context, i) for i in range(len(new)) if step.logits[i]]

        try:
            steps = [
                [run([(row, i, token) for i, token in enumerate(prompt)])[0]
                 for row, prompt in enumerate(prompts)]
            ]  # fmt: skip
            began = time.perf_counter()
            for done in range(n):
                last = enumerate(zip(prompts, steps[-1]))
                steps.append(run([(row, len(prompt) + done, id_) for row, (prompt, id_) in last]))
            return BatchRun(time.perf_counter() - began, [list(row) for row in zip(*steps)])
        finally:
            llama_cpp.llama_batch_free(step)
            llama_cpp.llama_free(context)

    return Loaded(lambda prompt, n: timed(tokens(prompt, n)), batch)


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
