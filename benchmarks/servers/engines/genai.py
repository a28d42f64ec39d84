"""onnxruntime-genai: `genai[:ARTIFACT[:engine]]`, by its Generator, or by its Engine.

Both run static batches on a CPU. The Generator gets the requests that wait as one batch, and the
next one begins when all have ended. The Engine makes its own batches, of at most 4 requests, and
takes no seed.
"""

from __future__ import annotations

import importlib
import json
from typing import Any

from servers.server import Arrivals, Job, Loaded, Sampling, Served, Server, Workload, serve_batches


def load(job: Job) -> Loaded:
    # By name, because type checkers do not see what this module defines.
    genai: Any = importlib.import_module("onnxruntime_genai")
    config = genai.Config(str(job.path))
    session = {"intra_op_num_threads": job.threads}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
    model = genai.Model(config)
    manifest = json.loads((job.path / "gptx.json").read_text("utf-8"))
    weights = f"{manifest['precision']} of gptx, {manifest['cache_dtype']} cache, static batches"
    if "engine" in job.options():
        engine = genai.Engine(model)
        return Loaded(lambda workload: _by_engine(genai, engine, workload), weights)

    def serve(workload: Workload) -> Served:
        def run(batch: list[int], arrivals: Arrivals, served: Served) -> None:
            prompts = [workload.prompts[request] for request in batch]
            generator = _begun(genai, model, prompts, workload)
            for _ in range(workload.new_tokens):
                generator.generate_next_token()
                now = arrivals.now()
                for request, token in zip(batch, generator.get_next_tokens()):
                    served.came(request, now, int(token))

        return serve_batches(workload, job.rows, run)

    return Loaded(serve, weights)


def _begun(genai: Any, model: Any, prompts: list[list[int]], workload: Workload) -> Any:
    """A Generator that has read prompts of one length. Its texts do not end before max_length."""
    import numpy as np

    length = len(prompts[0]) + workload.new_tokens
    params = genai.GeneratorParams(model)
    params.set_search_options(
        batch_size=len(prompts),
        max_length=length,
        min_length=length,
        repetition_penalty=1.0,
        **_drawn(workload.sampling),
    )
    generator = genai.Generator(model, params)
    generator.append_tokens(np.array(prompts, np.int32))
    return generator


def _drawn(sampling: Sampling) -> dict[str, Any]:
    if not sampling.temperature:
        return {"do_sample": False}
    return {
        "do_sample": True,
        "top_k": 0,
        "top_p": sampling.top_p,
        "temperature": sampling.temperature,
        "random_seed": sampling.seed,
    }


def _by_engine(genai: Any, engine: Any, workload: Workload) -> Served:
    served, arrivals = Served.empty(workload), Arrivals(workload.arrivals)
    events = engine.create_event_buffer(64)
    running: dict[Any, int] = {}
    while arrivals.left or running:
        for index in arrivals.take(len(workload.prompts)):
            running[_requested(genai, engine, workload, index)] = index
        if not running:
            arrivals.sleep()
            continue
        engine.run(events)
        now = arrivals.now()
        for event in events:
            index = running[event.request]
            served.came(index, now, event.token)
            if len(served.tokens[index]) == workload.new_tokens:
                del running[event.request]
                event.request.close()
    return served


def _requested(genai: Any, engine: Any, workload: Workload, index: int) -> Any:
    import numpy as np

    prompt, n, sampling = workload.prompts[index], workload.new_tokens, workload.sampling
    options = genai.RequestOptions()
    options.set_max_session_tokens(len(prompt) + n)
    request = engine.create_request(options=options)
    turn = genai.TurnOptions(request)
    turn.set_max_generated_tokens(n)
    turn.set_min_generated_tokens(n)
    turn.set_do_sample(bool(sampling.temperature))
    if sampling.temperature:
        turn.set_temperature(sampling.temperature)
        turn.set_top_p(sampling.top_p)
        turn.set_top_k(0)
    request.begin_turn(np.array(prompt, np.int32), turn)
    return request


SERVER = Server(("onnxruntime-genai", "onnxruntime"), load, takes_artifact=True)
