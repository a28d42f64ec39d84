"""Many threads use one model in every way at once, for as long as one likes."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptx.errors import GptxError
from gptx.model import Model

PROMPTS = (
    "Once upon a time",
    "The cat sat on the mat. The dog",
    "One day, a little girl named Lily went to the park with her mother. " * 4,
    "Tom had a big red ball. He",
    "In a small house by the sea " * 12,
)
MOST_TOKENS = 40  # of a text
STUCK = 60.0  # seconds after the end in which all requests must have ended


@dataclass
class Report:
    """requests: by what became of them. differing: greedy texts that are not those of their prompts
    alone. resident: bytes of the process, a tenth of the time apart. hanging: threads whose request
    does not end.
    """

    requests: dict[str, int] = field(default_factory=dict)
    differing: int = 0
    resident: list[int] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    hanging: int = 0

    @property
    def passed(self) -> bool:
        """Whether the texts were right, nothing hung and the memory stayed flat.

        Flat: the second half of the time needs at most 5% and 20 MB more than the first.
        """
        half = len(self.resident) // 2
        first, second = self.resident[1:half], self.resident[half:]
        flat = not first or max(second) <= 1.05 * max(first) + 20e6
        return flat and not (self.differing or self.unexpected or self.hanging)


def soak(
    model: Model, *, seconds: float, threads: int, tell: Callable[[str], object] = lambda line: None
) -> Report:
    """Use `model` for so many seconds from so many threads."""
    report, lock, ends = Report(), threading.Lock(), time.monotonic() + seconds
    alone = [
        model.generate(prompt, max_new_tokens=MOST_TOKENS, temperature=0).token_ids
        for prompt in PROMPTS
    ]

    def count(what: str) -> None:
        with lock:
            report.requests[what] = report.requests.get(what, 0) + 1

    def work(number: int) -> None:
        chance = random.Random(number)
        while time.monotonic() < ends:
            try:
                count(_one(model, chance, alone, report))
            except Exception as error:
                with lock:
                    report.unexpected.append(f"{type(error).__name__}: {error}")

    workers = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(threads)]
    for worker in workers:
        worker.start()
    _watch(model, report, ends, seconds / 10, tell)
    last = time.monotonic() + STUCK
    for worker in workers:
        worker.join(max(last - time.monotonic(), 0))
    report.hanging = sum(worker.is_alive() for worker in workers)
    return report


def _watch(
    model: Model, report: Report, ends: float, every: float, tell: Callable[[str], object]
) -> None:
    told = 0.0
    while time.monotonic() < ends:
        time.sleep(0.1)
        now, steps = time.monotonic(), model.stats().steps
        if now - told >= every:
            told = now
            report.resident.append(resident())
            tell(f"{report.resident[-1] / 1e6:.0f} MB, {steps:,} steps, {report.requests}")


def resident() -> int:
    """Bytes of this process in memory (Linux; else 0)."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(pages) * 4096


def _one(model: Model, chance: random.Random, alone: list[list[int]], report: Report) -> str:
    """One request of a random kind; what became of it."""
    at = chance.randrange(len(PROMPTS))
    options: dict[str, Any] = {"max_new_tokens": chance.randint(1, MOST_TOKENS), "temperature": 0}
    kind = chance.random()
    if kind < 0.3:
        found = model.generate(PROMPTS[at], **options).token_ids
        if found != alone[at][: len(found)]:
            report.differing += 1
        return "ended"
    if kind < 0.4:
        sampled: dict[str, Any] = {**options, "temperature": 0.9, "top_p": 0.9}
        model.generate(PROMPTS[at], **sampled)
        return "sampled"
    if kind < 0.45:
        several: dict[str, Any] = chance.choice([{"num_beams": 3}, {"guidance_scale": 1.5}])
        model.generate(PROMPTS[at], **several, **options)
        return "of several rows"
    if kind < 0.6:
        with model.stream(PROMPTS[at], **options) as stream:
            for _ in range(chance.randint(0, 5)):
                next(stream, None)
        return "left early"
    if kind < 0.7:
        handle = model.submit(PROMPTS[at], **options)
        time.sleep(chance.random() * 0.01)
        handle.cancel()
        return "cancelled"
    if kind < 0.8:
        model.generate(PROMPTS[at], max_time=0.001 + 0.01 * chance.random(), **options)
        return "out of time"
    if kind < 0.9:
        return _mistake(model, chance, PROMPTS[at], options)
    model.score(PROMPTS[at])
    return "scored"


def _mistake(model: Model, chance: random.Random, prompt: str, options: dict[str, Any]) -> str:
    """A bad option, or an error in an app's own function."""

    class Mine(Exception):
        pass

    def fails(*_: Any) -> None:
        if chance.random() < 0.3:
            raise Mine

    try:
        kind = chance.random()
        if kind < 0.3:
            wrong: dict[str, Any] = {**options, "temperature": -1}
            model.generate(prompt, **wrong)
        elif kind < 0.6:
            model.generate(prompt, on_token=fails, **options)
        else:
            model.generate(prompt, logits_processor=fails, **options)
    except (GptxError, Mine):
        return "a mistake"
    return "ended"
