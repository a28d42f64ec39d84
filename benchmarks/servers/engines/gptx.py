"""gptx: `gptx:ARTIFACT[:VARIANT]`, by Model.submit.

Variants, joined by commas: `threads`: each request is a thread that reads Model.stream. `plain`:
no speculation.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from servers.server import Arrivals, Job, Loaded, Served, Server, Workload


def load(job: Job) -> Loaded:
    import gptx
    from gptx.system import huge_pages

    # Move the weights into huge pages during the warm-up, as in a process that has run for a while.
    huge_pages.MOVE_AFTER = 8
    options = job.options()
    model = gptx.load(
        job.path, threads=job.threads, max_rows=job.rows, speculate="plain" not in options
    )
    begin = model.stream if "threads" in options else model.submit

    def serve(workload: Workload) -> Served:
        sampling, n = workload.sampling, workload.new_tokens
        drawn: dict[str, Any] = {"top_p": sampling.top_p} if sampling.temperature else {}
        served, arrivals = Served.empty(workload), Arrivals(workload.arrivals)

        def request(index: int) -> gptx.Stream:
            return begin(
                workload.prompts[index],
                max_new_tokens=n,
                min_new_tokens=n,
                temperature=sampling.temperature,
                seed=sampling.seed + index,
                on_token=lambda token, _: served.came(index, arrivals.now(), token),
                **drawn,
            )

        if "threads" in options:
            _in_threads(arrivals, lambda index: request(index).result())
            return served
        streams = []
        while arrivals.left:
            arrivals.sleep()
            streams += [request(index) for index in arrivals.take(len(workload.prompts))]
        for stream in streams:
            stream.result()
        return served

    manifest = model.manifest
    scheme = (manifest.raw.get("quantization") or {}).get("scheme", manifest.precision)
    if model.kernels is None:
        return Loaded(serve, f"{scheme}, {manifest.cache_dtype} cache, ONNX Runtime's operators")
    cache = manifest.step_cache_dtype
    return Loaded(serve, f"{scheme}, {cache} cache, native operators ({model.kernels})")


def _in_threads(arrivals: Arrivals, request: Callable[[int], object]) -> None:
    """Run each request in a thread that starts when it comes."""
    with ThreadPoolExecutor(len(arrivals.times)) as threads:
        running = []
        while arrivals.left:
            arrivals.sleep()
            for index in arrivals.take(len(arrivals.times)):
                running.append(threads.submit(request, index))
        for one in running:
            one.result()


SERVER = Server(("gptx-edge", "onnxruntime"), load, takes_artifact=True)
