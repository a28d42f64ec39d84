"""OpenVINO GenAI: `openvino:FOLDER[:VARIANT]`, by its ContinuousBatchingPipeline.

Variants, joined by commas: `f32`: compute in float32 (by default in bf16 where the processor can).
`tokens=N`: the most tokens of a step, 256 by default. Beginnings of prompts are not kept.
"""

from __future__ import annotations

import importlib
import re
from typing import Any

from servers.server import Arrivals, Job, Loaded, Served, Server, Workload

CACHE_GB = 2


def load(job: Job) -> Loaded:
    import numpy as np

    openvino: Any = importlib.import_module("openvino")
    genai: Any = importlib.import_module("openvino_genai")
    options = job.options()
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size, scheduler.max_num_seqs = CACHE_GB, job.rows
    scheduler.enable_prefix_caching = False
    if "tokens" in options:
        scheduler.max_num_batched_tokens = int(options["tokens"])
    properties: dict[str, Any] = {"INFERENCE_NUM_THREADS": job.threads}
    if "f32" in options:
        properties["INFERENCE_PRECISION_HINT"] = "f32"
    pipeline = genai.ContinuousBatchingPipeline(str(job.path), scheduler, "CPU", properties)
    ids = iter(range(10**9))

    def serve(workload: Workload) -> Served:
        served, arrivals = Served.empty(workload), Arrivals(workload.arrivals)
        handles: dict[int, Any] = {}
        while arrivals.left or handles:
            for request in arrivals.take(len(workload.prompts)):
                prompt = openvino.Tensor(np.array([workload.prompts[request]], np.int64))
                config = _config(genai, workload, request)
                handles[request] = pipeline.add_request(next(ids), prompt, config)
            if not handles:
                arrivals.sleep()
                continue
            pipeline.step()
            now = arrivals.now()
            for request, handle in list(handles.items()):
                while handle.can_read():
                    for output in handle.read().values():
                        served.came(request, now, *output.generated_ids)
                if len(served.tokens[request]) >= workload.new_tokens:
                    del handles[request]
        return served

    return Loaded(serve, _weights(job))


def _config(genai: Any, workload: Workload, request: int) -> Any:
    config, sampling = genai.GenerationConfig(), workload.sampling
    config.max_new_tokens, config.ignore_eos = workload.new_tokens, True
    if sampling.temperature:
        config.do_sample, config.rng_seed = True, sampling.seed + request
        config.temperature, config.top_p = sampling.temperature, sampling.top_p
    return config


def _weights(job: Job) -> str:
    text = (job.path / "openvino_model.xml").read_text("utf-8")
    mode = re.search(r'<weight_compression>.*?<mode value="(\w+)"', text, re.DOTALL)
    return f"{mode[1]} channels" if mode else "not compressed"


SERVER = Server(("openvino-genai", "openvino"), load)
