"""Run the measurements of gptx bench, with progress on standard error.

A table is printed as soon as its measurement ends.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gptx.bench import children, quality, speed
from gptx.bench.peers import Contender
from gptx.bench.speed import EngineSpeed
from gptx.cli import bench_report as report
from gptx.cli.bench_plan import Work
from gptx.progress import has_bars, note, stage


@dataclass(frozen=True)
class Results:
    """The contents of the output files: `facts` for --json, `speed` and `title` for --picture."""

    facts: dict[str, Any]
    speed: list[EngineSpeed]
    title: str


def run(work: Work) -> Results:
    """Measure and print speed, quality, or both, as planned."""
    facts: dict[str, Any] = {
        "benchmark": "bench",
        **work.machine,
        "kernels": work.kernels,
        "settings": asdict(work.speed),
    }
    results: list[EngineSpeed] = []
    with _prepared(work.engines, work.speed.threads) as engines:
        if work.speed.rounds:
            results = _measure_speed(work, engines, facts)
        if work.quality:
            _measure_quality(work, engines, facts)
    report.print_verdicts(results)
    device, date = work.machine["gpu"] or work.machine["cpu"], work.machine["date"][:10]
    return Results(facts, results, f"{device}, {work.speed.threads} threads, {date}")


def _measure_speed(
    work: Work, engines: list[Contender], facts: dict[str, Any]
) -> list[EngineSpeed]:
    timed = [one for one in engines if one.does.load is not None]
    with _progress("measuring", work.speed.rounds * (1 + len(timed))) as announce:
        results, bandwidth = speed.measure(timed, work.source.ids, work.speed, announce)
    report.print_speed(results, bandwidth, work.speed)
    facts["bandwidth"] = asdict(bandwidth)
    facts["engines"] = [one.to_dict(results[0]) for one in results]
    return results


def _measure_quality(work: Work, engines: list[Contender], facts: dict[str, Any]) -> None:
    assert work.quality is not None
    with _progress("scoring", len(engines) + 1) as announce:
        found = quality.measure(
            engines, work.quality, work.speed.threads, announce, device=work.speed.device
        )
    report.print_quality(found)
    facts["quality"] = found.to_dict()


@contextmanager
def _prepared(engines: list[Contender], threads: int) -> Iterator[list[Contender]]:
    """The engines with the paths that they load.

    An engine that reads only its own format (CTranslate2) converts a checkpoint into a temporary
    folder first. The conversion is not measured.
    """
    with tempfile.TemporaryDirectory(prefix="gptx-bench-") as folder:
        ready = []
        for number, one in enumerate(engines):
            if one.does.prepare:
                target = str(Path(folder) / str(number))
                with stage(f"preparing {one.label}"):
                    answer = children.ask(one, threads=threads, prepare=target)
                one = replace(one, path=Path(answer["path"]))
            ready.append(one)
        yield ready


@contextmanager
def _progress(text: str, total: int) -> Iterator[Callable[[str], None]]:
    """Yield a function that announces the next measurement, beside the bar or on a line."""
    with stage(text, total=total) as advance:
        begun = 0

        def announce(what: str) -> None:
            nonlocal begun
            if has_bars():
                advance(min(begun, 1), what)  # a step is done when the next one begins
            else:
                note(what)
            begun += 1

        yield announce
