"""Measure one engine in this process: `python -m gptx.bench.measure NAME`.

In: JSON on standard input, with a job and one of `prepare`, `speed` and `quality`. Out: JSON as the
last line of standard output. Memory is read from /proc, so it is null on systems other than Linux.
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
from gptx.bench.engine import Engine, Job, Loaded
from gptx.bench.engines import named
from gptx.doctor import installed


class Speed(NamedTuple):
    """The prompts of one round, as token ids."""

    new_tokens: int  # to decode after the first new token of each prompt
    cold: list[int]  # the first prompt after loading
    prompts: dict[str, list[list[int]]]  # by length; the first of each is a warm-up
    batch: list[list[int]]  # rows to decode together and then alone; []: no batch


def main() -> None:
    """Answer the request on standard input; every failure is an answer, too."""
    try:
        result = answer(named(sys.argv[1]), json.load(sys.stdin))
    except ModuleNotFoundError as error:
        result = {"missing": error.name}
    except Exception as error:  # gptx.bench.children turns it into a sentence
        traceback.print_exc()
        first_line = next(iter(str(error).strip().splitlines()), "")
        result = {"error": first_line or type(error).__name__}
    print("\n" + json.dumps(result))


def answer(engine: Engine, request: dict[str, Any]) -> dict[str, Any]:
    """Prepare a model, score a text, or measure speed, whichever is requested."""
    job = Job(**request["job"] | {"path": Path(request["job"]["path"])})
    if "prepare" in request:
        assert engine.prepare is not None
        return {"path": str(engine.prepare(job.path, job.variant, Path(request["prepare"])))}
    if "quality" in request:
        from gptx.bench.logits import Text, score

        engine.start()
        return score(engine, job, Text(**request["quality"]))
    return measure(engine, job, Speed(**request["speed"]))


def measure(engine: Engine, job: Job, speed: Speed) -> dict[str, Any]:
    """Import the engine, load the model, run all prompts; seconds and bytes of each phase."""
    device_memory = taken if job.device == "cuda" else lambda: None
    began = time.perf_counter()
    engine.start()
    found: dict[str, Any] = {
        "import": time.perf_counter() - began,
        "pss_imported": pss(),
        "rss_imported": rss(),
        "device_imported": device_memory(),
    }
    reset_peak()
    began = time.perf_counter()
    assert engine.load is not None
    model = engine.load(job)
    found |= {
        "load": time.perf_counter() - began,
        "pss_loaded": pss(),
        "rss_load_peak": peak_rss(),
        "device_loaded": device_memory(),
    }
    reset_peak()
    cold = model.generate(speed.cold, 1).first
    runs = {length: _runs(model, prompts, speed) for length, prompts in speed.prompts.items()}
    return found | {
        "first_from_load": found["load"] + cold,
        "runs": runs,
        "pss_used": pss(),
        "rss_run_peak": peak_rss(),
        "device_used": device_memory(),
        "versions": {name: version for name in engine.packages if (version := installed(name))},
        "notes": engine.notes(),
        "batch": _batch(model, speed),  # comes last, so that memory is that of batch 1
    }


def _runs(model: Loaded, prompts: list[list[int]], speed: Speed) -> list[dict[str, Any]]:
    """Run each prompt of one length; the first run is a warm-up that does not count."""
    runs = [model.generate(prompt, speed.new_tokens) for prompt in prompts]
    return [run._asdict() for run in runs[1:]]


def _batch(model: Loaded, speed: Speed) -> dict[str, Any] | None:
    """Decode rows together and alone: tokens a second, and rows that got the same tokens."""
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
    """Proportional set size in bytes: a page that n processes share counts as 1/n of a page."""
    return proc_bytes("/proc/self/smaps_rollup", "Pss")


def rss() -> int | None:
    """Resident set size in bytes."""
    return proc_bytes("/proc/self/status", "VmRSS")


def peak_rss() -> int | None:
    """Largest resident set size in bytes since the last reset_peak."""
    return proc_bytes("/proc/self/status", "VmHWM")


def reset_peak() -> None:
    """Let peak_rss begin anew (Linux)."""
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def proc_bytes(file: str, field: str) -> int | None:
    """A field of a file in /proc that is given in kB, in bytes; None if there is none."""
    if sys.platform != "linux":
        return None
    found = re.search(rf"^{field}:\s+(\d+) kB", Path(file).read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


if __name__ == "__main__":
    main()
