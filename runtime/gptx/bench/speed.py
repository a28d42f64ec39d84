"""Loading, memory, prefill, decode and batches of engines beside each other.

In: contenders and token ids. Out: an EngineSpeed each. Engines are measured in rounds that
alternate (A B C A B C ...), so that a slow minute of the machine meets all of them. Every round
starts new processes. In a round all engines get the same prompts and decode greedily, but never
pick the end of the text. The first prompt of each length is a warm-up that does not count. The
memory's speed is measured in every round, too; the highest one is the limit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gptx.bench import children
from gptx.bench.figures import Spread, with_ratios
from gptx.bench.peers import Contender
from gptx.bench.prompts import Cutter
from gptx.bench.weights import Weights, read_files, weights_of
from gptx.text.prefix import common_length


@dataclass(frozen=True)
class SpeedPlan:
    """What is measured; the fields are written as `settings` into the JSON."""

    prompt_tokens: list[int]  # lengths of the prompts
    cold: int  # length of the first prompt after loading
    new_tokens: int  # decoded after the first new one
    rounds: int
    repeats: int  # runs of each prompt length in a round
    batch: int  # rows; 1: no batch is measured
    threads: int
    ends: list[int]  # ids of end-of-text tokens, which no engine may pick
    device: str = "cpu"

    @property
    def context(self) -> int:
        """Tokens of the longest prompt and all that follows it."""
        return max(*self.prompt_tokens, self.cold) + self.new_tokens + 1


@dataclass(frozen=True)
class Bandwidth:
    """The speed at which memory can be read."""

    bytes_per_s: float  # the highest of all rounds
    kernel: str  # the way of reading that reached it
    rounds: list[dict[str, float]]  # bytes a second by way of reading, for each round


@dataclass(frozen=True)
class EngineSpeed:
    """All figures of one engine."""

    contender: Contender
    versions: dict[str, str]
    notes: str
    weights: Weights
    limit: float  # tokens a second that the memory's speed allows at batch 1
    loading: dict[str, Spread]
    memory: dict[str, Spread]  # {} on systems other than Linux
    prompts: dict[int, dict[str, Spread]]  # by length of the prompt
    batch: dict[str, Spread]  # {} if it was not measured

    def to_dict(self, first: EngineSpeed) -> dict[str, Any]:
        """For JSON, with ratios to the `first` engine."""
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
    engines: Sequence[Contender], ids: list[int], plan: SpeedPlan, announce: Callable[[str], None]
) -> tuple[list[EngineSpeed], Bandwidth]:
    """Measure all engines, which get prompts cut from `ids`.

    `announce` is called with what is measured next. Raises GptxError if an engine fails.
    """
    for engine in engines:
        read_files(engine.path)
    answers: list[list[children.Answer]] = [[] for _ in engines]
    memory = []
    prompts_in_all = plan.rounds * (1 + len(plan.prompt_tokens) * (plan.repeats + 1) + plan.batch)
    cutter = Cutter(ids, prompts_in_all)
    for number in range(1, plan.rounds + 1):
        of = f"round {number} of {plan.rounds}"
        announce(f"{of}: the memory's speed")
        memory.append(children.bandwidth(plan.threads, plan.device))
        prompts = _prompts(plan, cutter)
        for engine, rounds in zip(engines, answers):
            announce(f"{of}: {engine.label}")
            rounds.append(_ask(engine, plan, prompts))
    fastest, kernel = max((value, name) for one in memory for name, value in one.items())
    results = [
        _summary(engine, rounds, answers[0], plan, fastest)
        for engine, rounds in zip(engines, answers)
    ]
    return results, Bandwidth(fastest, kernel, memory)


def _ask(engine: Contender, plan: SpeedPlan, prompts: dict[str, Any]) -> children.Answer:
    return children.ask(
        engine,
        threads=plan.threads,
        device=plan.device,
        context=plan.context,
        ends=plan.ends,
        speed=prompts,
    )


def _prompts(plan: SpeedPlan, cutter: Cutter) -> dict[str, Any]:
    """The prompts of one round, as gptx.bench.measure.Speed takes them."""
    rows = plan.batch if plan.batch > 1 else 0
    return {
        "new_tokens": plan.new_tokens,
        "cold": cutter.cut(plan.cold),
        "prompts": {
            n: [cutter.cut(n) for _ in range(plan.repeats + 1)] for n in plan.prompt_tokens
        },
        "batch": [cutter.cut(min(plan.prompt_tokens)) for _ in range(rows)],
    }


def _summary(
    engine: Contender,
    rounds: list[children.Answer],
    first: list[children.Answer],
    plan: SpeedPlan,
    bandwidth: float,
) -> EngineSpeed:
    """Sum up an engine's answers, one a round. `first`: those of the first engine."""
    weights = weights_of(engine.path, engine.variant)
    limit = bandwidth / weights.read
    return EngineSpeed(
        contender=engine,
        versions=rounds[0]["versions"],
        notes=rounds[0]["notes"],
        weights=weights,
        limit=limit,
        loading={
            "import_s": Spread.of(one["import"] for one in rounds),
            "load_s": Spread.of(one["load"] for one in rounds),
            "first_token_from_load_s": Spread.of(one["first_from_load"] for one in rounds),
        },
        memory=_memory(rounds),
        prompts={
            length: _prompt_speed(_runs(rounds, length), _runs(first, length), limit)
            for length in plan.prompt_tokens
        },
        batch=_batch(rounds, limit, plan.batch),
    )


def _runs(rounds: list[children.Answer], length: int) -> list[dict[str, Any]]:
    return [run for one in rounds for run in one["runs"][str(length)]]


def _prompt_speed(
    runs: list[dict[str, Any]], of_first: list[dict[str, Any]], limit: float
) -> dict[str, Spread]:
    decode = Spread.of((len(run["tokens"]) - 1) / run["decode"] for run in runs)
    return {
        "prefill_s": Spread.of(run["first"] for run in runs),
        "decode_tokens_per_s": decode,
        "share_of_limit": decode.times(1 / limit),
        "same_tokens": Spread.of(
            common_length(run["tokens"], other["tokens"]) for run, other in zip(runs, of_first)
        ),
    }


def _memory(rounds: list[children.Answer]) -> dict[str, Spread]:
    """Bytes that loading and running added to the process's memory and to the GPU's.

    Figures that the system does not provide are left out.
    """
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
