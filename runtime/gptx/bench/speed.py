"""Load time, memory, prefill, decode and batch of engines beside each other, in rounds that alternate (A B C A B C ...).

In: contenders and token ids. Out: a Result each. Every round starts new processes; in a round all engines get the same
prompts and pick greedily, never the end of the text; the first prompt of each length warms up and does not count. The
memory's speed is measured in every round too, and the highest is the limit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gptx.bench import children
from gptx.bench.figures import Spread, with_ratios
from gptx.bench.peers import Contender
from gptx.bench.prompts import Cutter
from gptx.bench.weights import Weights, warm, weights_of


@dataclass(frozen=True)
class Plan:
    prompt_tokens: list[int]
    cold: int  # tokens of the first prompt after loading
    new_tokens: int  # after the first one
    rounds: int
    repeats: int  # runs of each prompt length in a round
    batch: int
    threads: int
    ends: list[int]  # token ids that no engine picks
    device: str = "cpu"

    @property
    def context(self) -> int:
        return max(*self.prompt_tokens, self.cold) + self.new_tokens + 1


@dataclass(frozen=True)
class Bandwidth:
    bytes_per_s: float
    kernel: str
    rounds: list[dict[str, float]]  # every way of reading, by round


@dataclass(frozen=True)
class Result:
    contender: Contender
    versions: dict[str, str]
    notes: str
    weights: Weights
    limit: float  # tokens a second that the memory's speed allows at batch 1
    loading: dict[str, Spread]
    memory: dict[str, Spread]  # empty off Linux
    prompts: dict[int, dict[str, Spread]]
    batch: dict[str, Spread]  # empty where it is not measured

    def to_dict(self, first: Result) -> dict[str, Any]:
        memory = with_ratios(self.memory, first.memory)
        for one in memory.values():
            one["times_weights"] = round(one["median"] / self.weights.stored, 4)
        return {
            "engine": self.contender.label,
            "path": str(self.contender.path),
            "versions": self.versions,
            "notes": self.notes,
            "weights_bytes": self.weights.stored,
            "read_bytes_per_token": self.weights.read,
            "limit_tokens_per_s": round(self.limit, 2),
            "loading": with_ratios(self.loading, first.loading),
            "memory": memory,
            "prompts": {
                str(n): with_ratios(values, first.prompts[n]) for n, values in self.prompts.items()
            },
            "batch": with_ratios(self.batch, first.batch),
        }


def measure(
    engines: Sequence[Contender], ids: list[int], plan: Plan, told: Callable[[str], None]
) -> tuple[list[Result], Bandwidth]:
    """`told` is called with what is about to be measured. Raises GptxError."""
    for engine in engines:
        warm(engine.path)
    cutter = Cutter(
        ids, plan.rounds * (1 + len(plan.prompt_tokens) * (plan.repeats + 1) + plan.batch)
    )
    answers: list[list[children.Answer]] = [[] for _ in engines]
    memory = []
    for number in range(1, plan.rounds + 1):
        of = f"round {number} of {plan.rounds}"
        told(f"{of}: the memory's speed")
        memory.append(children.bandwidth(plan.threads, plan.device))
        job: dict[str, Any] = {
            "threads": plan.threads,
            "device": plan.device,
            "context": plan.context,
            "ends": plan.ends,
        }
        speed = asked(plan, cutter)
        for engine, found in zip(engines, answers):
            told(f"{of}: {engine.label}")
            found.append(children.ask(engine, **job, speed=speed))
    fastest, kernel = max((value, name) for one in memory for name, value in one.items())
    results = [
        summary(engine, found, answers[0], plan, fastest) for engine, found in zip(engines, answers)
    ]
    return results, Bandwidth(fastest, kernel, memory)


def asked(plan: Plan, cutter: Cutter) -> dict[str, Any]:
    return {
        "new_tokens": plan.new_tokens,
        "cold": cutter.cut(plan.cold),
        "prompts": {
            n: [cutter.cut(n) for _ in range(plan.repeats + 1)] for n in plan.prompt_tokens
        },
        "batch": [cutter.cut(min(plan.prompt_tokens)) for _ in range(plan.batch)]
        if plan.batch > 1
        else [],
    }


def summary(
    engine: Contender,
    rounds: list[children.Answer],
    first: list[children.Answer],
    plan: Plan,
    bandwidth: float,
) -> Result:
    """`rounds`: what the engine's processes said; `first`: the same of the first engine."""
    weights = weights_of(engine.path, engine.variant)
    limit = bandwidth / weights.read
    prompts = {}
    for length in plan.prompt_tokens:
        runs, theirs = (
            [run for one in every for run in one["runs"][str(length)]] for every in (rounds, first)
        )
        decode = Spread.of((len(run["tokens"]) - 1) / run["decode"] for run in runs)
        prompts[length] = {
            "prefill_s": Spread.of(run["first"] for run in runs),
            "decode_tokens_per_s": decode,
            "share_of_limit": decode.times(1 / limit),
            "same_tokens": Spread.of(
                common(run["tokens"], their["tokens"]) for run, their in zip(runs, theirs)
            ),
        }
    loading = {
        "import_s": Spread.of(one["import"] for one in rounds),
        "load_s": Spread.of(one["load"] for one in rounds),
        "first_token_from_load_s": Spread.of(one["first_from_load"] for one in rounds),
    }
    return Result(
        engine,
        rounds[0]["versions"],
        rounds[0]["notes"],
        weights,
        limit,
        loading,
        _memory(rounds),
        prompts,
        _batch(rounds, limit, plan.batch),
    )


def _memory(rounds: list[children.Answer]) -> dict[str, Spread]:
    """What loading and running added to the process, or to what is taken of the device's memory; nothing where the system
    does not say."""
    found = {}
    if rounds[0]["pss_imported"] is not None:
        found = {
            "loaded": Spread.of(one["pss_loaded"] - one["pss_imported"] for one in rounds),
            "used": Spread.of(one["pss_used"] - one["pss_imported"] for one in rounds),
            "peak_loading": Spread.of(one["rss_load_peak"] - one["rss_imported"] for one in rounds),
            "peak_running": Spread.of(one["rss_run_peak"] - one["rss_imported"] for one in rounds),
        }
    if rounds[0]["device_imported"] is not None:
        for name in ("device_loaded", "device_used"):
            found[name] = Spread.of(one[name] - one["device_imported"] for one in rounds)
    return found


def _batch(rounds: list[children.Answer], limit: float, size: int) -> dict[str, Spread]:
    found = [one["batch"] for one in rounds if one["batch"]]
    if not found:
        return {}
    together = Spread.of(one["together"] for one in found)
    return {
        "tokens_per_s": together,
        "alone_tokens_per_s": Spread.of(one["alone"] for one in found),
        "gain": Spread.of(one["together"] / one["alone"] for one in found),
        "share_of_limit": together.times(1 / (size * limit)),
        "same_rows": Spread.of(one["same_rows"] for one in found),
    }


def common(one: list[int], other: list[int]) -> int:
    """How many tokens are the same before the first that differs."""
    return next(
        (i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other))
    )
