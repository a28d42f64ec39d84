"""CTranslate2: `ctranslate2:FOLDER[:int8]`, its own format or a Hugging Face checkpoint.

Static batches: the requests that wait are one batch, and the next one begins when all have ended. A
callback times each token. A minimum length keeps the texts from ending early.
"""

from __future__ import annotations

import importlib
import json
from typing import Any

from gptx.bench.engines import named
from servers.server import Arrivals, Job, Loaded, Served, Server, Workload, serve_batches


def load(job: Job) -> Loaded:
    library: Any = importlib.import_module("ctranslate2")
    generator = library.Generator(
        str(job.path), "cpu", compute_type=job.variant or "default", intra_threads=job.threads
    )
    words: list[str] = json.loads((job.path / "vocabulary.json").read_text("utf-8"))

    def serve(workload: Workload) -> Served:
        n, sampling = workload.new_tokens, workload.sampling
        options: dict[str, Any] = {"sampling_topk": 1}
        if sampling.temperature:
            library.set_random_seed(sampling.seed)
            options = {
                "sampling_topk": 0,
                "sampling_topp": sampling.top_p,
                "sampling_temperature": sampling.temperature,
            }

        def run(batch: list[int], arrivals: Arrivals, served: Served) -> None:
            def came(step: Any) -> bool:
                served.came(batch[step.batch_id], arrivals.now(), step.token_id)
                return False  # True would stop the generation

            generator.generate_batch(
                [[words[token] for token in workload.prompts[request]] for request in batch],
                beam_size=1,
                max_length=n,
                min_length=n,
                include_prompt_in_result=False,
                callback=came,
                **options,
            )

        return serve_batches(workload, job.rows, run)

    return Loaded(serve, f"{generator.compute_type}, float32 cache, static batches")


SERVER = Server(("ctranslate2",), load, prepare=named("ctranslate2").prepare)
