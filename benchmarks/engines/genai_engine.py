"""onnxruntime-genai on the same artifact: `genai:ARTIFACT`, which is any folder with a genai_config.json.

A minimum length keeps it from ending early: the end of the text is then never picked.
"""

import importlib
import json
from collections.abc import Iterator
from typing import Any

from measure import Engine, Generate, Job, main, timed


def start() -> None:
    import onnxruntime_genai  # noqa: F401


def load(job: Job) -> Generate:
    import numpy as np

    genai: Any = importlib.import_module("onnxruntime_genai")  # its names are made at run time, unseen by type checkers
    config = genai.Config(str(job.path))
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": job.threads}}}}))
    model = genai.Model(config)

    def tokens(prompt: list[int], n: int) -> Iterator[int]:
        params = genai.GeneratorParams(model)
        length = len(prompt) + n + 1
        params.set_search_options(do_sample=False, max_length=length, min_length=length)
        generator = genai.Generator(model, params)
        generator.append_tokens(np.array([prompt], np.int32))
        for _ in range(n + 1):
            generator.generate_next_token()
            yield int(generator.get_next_tokens()[0])

    return lambda prompt, n: timed(tokens(prompt, n))


if __name__ == "__main__":
    main(Engine(("onnxruntime-genai", "onnxruntime"), start, load))
