"""The engine's promise: a request gives the same logits to the bit, whatever else runs.

A schedule is a random course of the engine: requests join and leave between steps, their prompts
are read in pieces beside others that decode, begin with what was read before, and are cancelled.
Each logit of each request is compared with those of the request alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gptx.engine.loaded_model import LoadedModel
from gptx.engine.stream import Stream

MOST_TOKENS = 24  # new tokens of a request
ACTIONS = 30  # of a schedule: a request joins, one is read on, one is cancelled


@dataclass(frozen=True)
class Case:
    """A request, and the hash of its logits in front of each new token when it runs alone."""

    prompt: tuple[int, ...]
    options: dict[str, Any]
    expected: tuple[int, ...] = ()


@dataclass
class Difference:
    """Rows of logits that were compared, and those of them that differ in a bit."""

    compared: int = 0
    differing: int = 0


@dataclass
class _Running:
    case: Case
    stream: Stream
    found: list[int] = field(default_factory=list)


def cases(
    model: LoadedModel, text: Sequence[int], random: np.random.Generator, n: int, *, longest: int
) -> list[Case]:
    """`n` requests with prompts from a text, each run alone for its logits.

    longest: tokens of the longest prompt. Some prompts begin alike, and some repeat themselves;
    some requests are greedy, some sample, some want the log-probabilities of their prompts, and
    some need several rows (beams, guidance).
    """
    longest = min(longest, model.n_ctx - MOST_TOKENS, len(text))
    found: list[Case] = []
    while len(found) < n:
        length = int(random.integers(1, longest + 1))
        start = int(random.integers(0, len(text) - length + 1))
        prompt = list(text[start : start + length])
        if found and random.random() < 0.3:  # begins like another one
            other = found[int(random.integers(len(found)))].prompt
            prompt = [*other[: int(random.integers(1, len(other) + 1))], *prompt][:longest]
        if random.random() < 0.2:  # repeats itself
            prompt = (prompt * 2)[:longest]
        options: dict[str, Any] = {"max_new_tokens": MOST_TOKENS, "temperature": 0.0}
        if random.random() < 0.5:
            options |= {"temperature": 0.8, "top_p": 0.95, "seed": int(random.integers(1000))}
        elif random.random() < 0.2:
            options |= {"num_beams": 3}
        elif random.random() < 0.2:
            options |= {"guidance_scale": 1.5, "negative_prompt": prompt[len(prompt) // 2 :]}
        if not options.keys() & {"num_beams", "guidance_scale"} and random.random() < 0.2:
            options |= {"prompt_logprobs": True}
        model.engine.forget()
        alone = _begin(model, Case(tuple(prompt), options))
        alone.stream.result()
        found.append(Case(tuple(prompt), options, tuple(alone.found)))
    model.engine.forget()
    return found


def run_schedule(
    model: LoadedModel, cases: Sequence[Case], random: np.random.Generator
) -> Difference:
    """Run one random schedule of these requests."""
    running: list[_Running] = []
    done: list[_Running] = []
    if random.random() < 0.5:
        model.engine.forget()
    for _ in range(ACTIONS):
        action = random.random()
        if not running or action < 0.3:
            running.append(_begin(model, cases[int(random.integers(len(cases)))]))
            continue
        one = running[int(random.integers(len(running)))]
        if action < 0.37:
            one.stream.close()
        if next(one.stream, None) is None:
            running.remove(one)
            done.append(one)
    for one in running:
        if random.random() < 0.5:
            one.stream.close()
        else:
            one.stream.result()
    difference = Difference()
    for one in (*done, *running):
        expected = one.case.expected[: len(one.found)]
        difference.compared += len(one.found)
        difference.differing += sum(a != b for a, b in zip(one.found, expected))
        difference.differing += len(one.found) - len(expected)
    return difference


def _begin(model: LoadedModel, case: Case) -> _Running:
    found: list[int] = []

    def keep(_: list[int], logits: np.ndarray) -> None:
        found.append(hash(logits.tobytes()))

    stream = model.stream(list(case.prompt), logits_processor=keep, **case.options)
    return _Running(case, stream, found)
