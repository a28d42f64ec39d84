"""One engine measured in this process: a job as JSON on standard input, figures as the last line of standard output.

Each *_engine.py calls `main` with how it is imported, loaded and asked for tokens. What other engines there are, and
what the figures are worth beside each other, it does not know. Memory is read from /proc, so it is null off Linux.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple


class Run(NamedTuple):
    """`first`: seconds from the prompt's ids to the first new id; `decode`: seconds for all the ids after it."""

    first: float
    decode: float
    tokens: list[int]


# (prompt, n) -> the first new token and n more, picked greedily, the end of the text ignored
Generate = Callable[[list[int], int], Run]


class Job(NamedTuple):
    path: Path
    variant: str | None  # what stands behind the path on the command line: int8 for ctranslate2, say
    threads: int
    context: int  # tokens that the longest prompt and what follows it take
    new_tokens: int
    prompts: dict[str, list[list[int]]]  # by length; the first of each only warms up


@dataclass(frozen=True)
class Engine:
    packages: tuple[str, ...]  # gptx, or distributions whose versions are reported
    start: Callable[[], object]  # imports the library
    load: Callable[[Job], Generate]
    prepare: Callable[[Path, str | None, Path], Path] | None = None  # (path, variant, empty folder) -> path to load
    notes: Callable[[], str] = lambda: ""


def main(engine: Engine) -> None:
    """With --prepare PATH VARIANT FOLDER: print the path that is to be measured. Else measure the job on stdin."""
    if sys.argv[1:2] == ["--prepare"]:
        path, variant, folder = sys.argv[2:5]
        ready = engine.prepare(Path(path), variant or None, Path(folder)) if engine.prepare else path
        print(f"\n{ready}")
        return
    raw = json.load(sys.stdin)
    print("\n" + json.dumps(measure(engine, Job(**raw | {"path": Path(raw["path"])}))))


def measure(engine: Engine, job: Job) -> dict[str, Any]:
    engine.start()
    imported = pss()
    reset_peak()
    began = time.perf_counter()
    generate = engine.load(job)
    loaded_in = time.perf_counter() - began
    loaded, load_peak = pss(), peak_rss()

    reset_peak()
    cold: list[float] = []
    runs: dict[str, list[Run]] = {}
    for length, (warm_up, *prompts) in job.prompts.items():
        cold.append(generate(warm_up, job.new_tokens).first)
        runs[length] = [generate(prompt, job.new_tokens) for prompt in prompts]
    used, run_peak = pss(), peak_rss()
    return {
        "versions": {name: version(name) for name in engine.packages},
        "notes": engine.notes(),
        "size": size_on_disk(job.path),
        "load": loaded_in,
        "first_from_load": loaded_in + cold[0],
        "pss_imported": imported,
        "pss_loaded": loaded,
        "pss_used": used,
        "rss_load_peak": load_peak,
        "rss_run_peak": run_peak,
        "runs": {length: [run._asdict() for run in every] for length, every in runs.items()},
    }


def timed(tokens: Iterator[int]) -> Run:
    """A Run of an engine that gives its tokens one by one. The prompt is fed when the first is asked for."""
    began = time.perf_counter()
    first = next(tokens)
    at = time.perf_counter()
    rest = list(tokens)
    return Run(at - began, time.perf_counter() - at, [first, *rest])


def version(package: str) -> str:
    """gptx's by itself: from a clone it runs without being installed."""
    if package == "gptx":
        import gptx

        return gptx.__version__
    return importlib.metadata.version(package)


def size_on_disk(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def pss() -> int | None:
    """Bytes of memory that are this process's, a page shared by n processes counted as 1/n."""
    return _bytes("/proc/self/smaps_rollup", "Pss")


def peak_rss() -> int | None:
    """The most memory resident at once since the last reset_peak."""
    return _bytes("/proc/self/status", "VmHWM")


def reset_peak() -> None:
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def _bytes(file: str, field: str) -> int | None:
    if sys.platform != "linux":
        return None
    found = re.search(rf"^{field}:\s+(\d+) kB", Path(file).read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else None
