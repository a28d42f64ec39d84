"""onnxruntime-genai: `genai:ARTIFACT`, any folder with a genai_config.json.

A minimum length keeps the text from ending early: end-of-text tokens are never picked before it.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gptx.bench.engine import Engine, Job, Loaded, Logits, timed

if TYPE_CHECKING:
    import numpy as np


def start() -> Any:
    # By name, because type checkers do not see what this module defines.
    return importlib.import_module("onnxruntime_genai")


def _opened(job: Job) -> Any:
    genai = start()
    config = genai.Config(str(job.path))
    config.overlay(
        json.dumps(
            {"model": {"decoder": {"session_options": {"intra_op_num_threads": job.threads}}}}
        )
    )
    return genai.Model(config)


def _begun(model: Any, prompt: list[int], length: int) -> Any:
    import numpy as np

    genai = start()
    params = genai.GeneratorParams(model)
    # Greedy, whatever genai_config.json sets.
    params.set_search_options(
        do_sample=False, repetition_penalty=1.0, max_length=length, min_length=length
    )
    generator = genai.Generator(model, params)
    generator.append_tokens(np.array([prompt], np.int32))
    return generator


def load(job: Job) -> Loaded:
    model = _opened(job)

    def tokens(prompt: list[int], n: int) -> Iterator[int]:
        generator = _begun(model, prompt, len(prompt) + n + 1)
        for _ in range(n + 1):
            generator.generate_next_token()
            yield int(generator.get_next_tokens()[0])

    return Loaded(lambda prompt, n: timed(tokens(prompt, n)))


def logits(job: Job) -> Logits:
    import numpy as np

    model = _opened(job)

    def after_each(window: list[int]) -> np.ndarray:
        output = np.asarray(_begun(model, window, len(window) + 1).get_output("logits"), np.float32)
        return output.reshape(-1, output.shape[-1])

    return after_each


ENGINE = Engine(
    ("onnxruntime-genai", "onnxruntime"),
    "pip install onnxruntime-genai",
    start,
    load,
    logits,
    takes_artifact=True,
)
