"""One engine in this process, as `python -m gptx.bench.measure NAME`: JSON on standard input, JSON as the last line of
standard output.

Asked is one of `prepare`, `speed` and `quality`. What other engines there are, and what the figures are worth beside
each other, it does not know. Memory is read from /proc, so it is null off Linux.
"""

from __future__ import annotations

import json
import re
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

from gptx.bench.device import taken
from gptx.bench.engine import Engine, Job, Loaded, Run
from gptx.bench.engines import named
from gptx.doctor import installed


class Speed(NamedTuple):
    new_tokens: int  # after each prompt's first
    cold: list[int]  # the first prompt after loading
    prompts: dict[str, list[list[int]]]  # by length; the first of each only warms up
    batch: list[list[int]]  # rows that are decoded together, and alone


def main() -> None:
    try:
        answer = answered(named(sys.argv[1]), json.load(sys.stdin))
    except ModuleNotFoundError as error:
        answer = {"missing": error.name}
    except Exception as error:  # the other side makes a sentence of it
        traceback.print_exc()
        answer = {"error": next(iter(str(error).strip().splitlines()), "") or type(error).__name__}
    print("\n" + json.dumps(answer))


def answered(engine: Engine, asked: dict[str, Any]) -> dict[str, Any]:
    job = Job(**asked["job"] | {"path": Path(asked["job"]["path"])})
    if "prepare" in asked:
        ready = (
            engine.prepare(job.path, job.variant, Path(asked["prepare"]))
            if engine.prepare
            else job.path
        )
        return {"path": str(ready)}
    if "quality" in asked:
        from gptx.bench.logits import Text, judged

        engine.start()
        return judged(engine, job, Text(**asked["quality"]))
    return measured(engine, job, Speed(**asked["speed"]))


def measured(engine: Engine, job: Job, speed: Speed) -> dict[str, Any]:
    began = time.perf_counter()
    engine.start()
    import_s = time.perf_counter() - began
    imported, rss_imported = pss(), rss()
    on_device = taken if job.device == "cuda" else lambda: None
    device_imported = on_device()
    reset_peak()
    began = time.perf_counter()
    assert engine.load is not None
    model = engine.load(job)
    load_s = time.perf_counter() - began
    loaded, load_peak, device_loaded = pss(), peak_rss(), on_device()

    reset_peak()
    cold = model.generate(speed.cold, 1).first
    runs: dict[str, list[Run]] = {}
    for length, (warm_up, *prompts) in speed.prompts.items():
        model.generate(warm_up, speed.new_tokens)
        runs[length] = [model.generate(prompt, speed.new_tokens) for prompt in prompts]
    used, run_peak, device_used = pss(), peak_rss(), on_device()
    return {
        "versions": {name: version for name in engine.packages if (version := installed(name))},
        "notes": engine.notes(),
        "import": import_s,
        "load": load_s,
        "first_from_load": load_s + cold,
        "pss_imported": imported,
        "pss_loaded": loaded,
        "pss_used": used,
        "rss_imported": rss_imported,
        "rss_load_peak": load_peak,
        "rss_run_peak": run_peak,
        "device_imported": device_imported,
        "device_loaded": device_loaded,
        "device_used": device_used,
        "runs": {length: [run._asdict() for run in every] for length, every in runs.items()},
        "batch": _batch(model, speed),  # last, so that memory is that of batch 1
    }


def _batch(model: Loaded, speed: Speed) -> dict[str, Any] | None:
    """Rows together and alone: tokens a second of both, and how many rows have the same tokens."""
    if model.batch is None or not speed.batch:
        return None
    n = speed.new_tokens
    model.batch(speed.batch, 1)
    together = model.batch(speed.batch, n)
    alone = [model.generate(prompt, n) for prompt in speed.batch]
    return {
        "together": n * len(alone) / together.decode,
        "alone": n * len(alone) / sum(run.decode for run in alone),
        "same_rows": sum(row == run.tokens for row, run in zip(together.rows, alone)),
    }


def pss() -> int | None:
    """Bytes of memory that are this process's, a page shared by n processes counted as 1/n."""
    return proc_bytes("/proc/self/smaps_rollup", "Pss")


def rss() -> int | None:
    return proc_bytes("/proc/self/status", "VmRSS")


def peak_rss() -> int | None:
    """The most memory resident at once since the last reset_peak."""
    return proc_bytes("/proc/self/status", "VmHWM")


def reset_peak() -> None:
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def proc_bytes(file: str, field: str) -> int | None:
    """A field of one of /proc's files that are in kB; None off Linux, and where there is no such field."""
    if sys.platform != "linux":
        return None
    found = re.search(rf"^{field}:\s+(\d+) kB", Path(file).read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


if __name__ == "__main__":
    main()
