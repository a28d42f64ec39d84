"""CTranslate2: `ctranslate2:FOLDER[:int8]`, a folder of its own or a Hugging Face checkpoint, which is converted first.

It answers whole calls, and tells a callback of each token as it comes. A minimum length keeps it from ending early.
"""

import json
import time
from pathlib import Path

from measure import Engine, Generate, Job, Run, main


def start() -> None:
    import ctranslate2  # noqa: F401


def prepare(path: Path, variant: str | None, folder: Path) -> Path:
    if (path / "model.bin").exists():
        return path
    from ctranslate2.converters import TransformersConverter

    converter = TransformersConverter(str(path))
    return Path(converter.convert(str(folder), quantization=variant or "float32"))


def load(job: Job) -> Generate:
    import ctranslate2

    compute = job.variant or "default"
    generator = ctranslate2.Generator(str(job.path), "cpu", compute_type=compute, intra_threads=job.threads)
    words: list[str] = json.loads((job.path / "vocabulary.json").read_text("utf-8"))

    def generate(prompt: list[int], n: int) -> Run:
        times: list[float] = []

        def came(_: object) -> bool:
            times.append(time.perf_counter())
            return False  # go on

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

    return generate


if __name__ == "__main__":
    main(Engine(("ctranslate2",), start, load, prepare))
