"""CTranslate2: `ctranslate2:FOLDER[:int8]`, its own format or a Hugging Face checkpoint.

A checkpoint is converted first. A callback times each token. A minimum length keeps the text from
ending early.
"""

from __future__ import annotations

import importlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptx.bench.engine import Engine, Job, Loaded, Logits, Run

if TYPE_CHECKING:
    import numpy as np


def start() -> Any:
    return importlib.import_module("ctranslate2")


def prepare(path: Path, variant: str | None, folder: Path) -> Path:
    if (path / "model.bin").exists():
        return path
    converters: Any = importlib.import_module("ctranslate2.converters")
    converter = converters.TransformersConverter(str(path))
    return Path(converter.convert(str(folder), quantization=variant or "float32"))


def _opened(job: Job) -> Any:
    compute = job.variant or "default"
    return start().Generator(str(job.path), "cpu", compute_type=compute, intra_threads=job.threads)


def load(job: Job) -> Loaded:
    generator = _opened(job)
    words: list[str] = json.loads((job.path / "vocabulary.json").read_text("utf-8"))

    def generate(prompt: list[int], n: int) -> Run:
        times: list[float] = []

        def came(_: object) -> bool:
            times.append(time.perf_counter())
            return False  # True would stop the generation

        began = time.perf_counter()
        results = generator.generate_batch(
            [[words[token] for token in prompt]],
            beam_size=1,
            max_length=n + 1,
            min_length=n + 1,
            include_prompt_in_result=False,
            callback=came,
        )
        return Run(times[0] - began, times[-1] - times[0], results[0].sequences_ids[0])

    return Loaded(generate)


def logits(job: Job) -> Logits:
    import numpy as np

    generator = _opened(job)

    def after_each(window: list[int]) -> np.ndarray:
        return np.asarray(generator.forward_batch([window]), np.float32)[0]

    return after_each


ENGINE = Engine(
    ("ctranslate2",),
    "pip install ctranslate2 transformers torch",
    start,
    load,
    logits,
    prepare=prepare,
    takes_variant=True,
)
