"""How far an artifact may be from its reference: the table of limits, and judging figures by it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from gptx.errors import UsageError
from gptx.parity.metrics import Figures

# Limits by precision.
#
# fp32 is judged by the largest difference of a logit. Two fp32 implementations of one model differ
# by about 1e-4 (SmolLM2: PyTorch's fp32 from fp64 by 1.3e-4). `relative` is a share of the largest
# logit; the larger of both limits holds.
#
# The others round weights, so they are judged by KL divergence (nats), which says what rounding
# does to the predictions. The same holds for `consistency`, a model compared with itself: where
# activations are rounded to 8 bits, a difference of 1e-6 between two kernels of one operator can
# turn into a whole step of 8 bits, as large as the rounding itself.
LIMITS: dict[str, dict[str, float]] = {
    "fp32": {"max_abs": 1e-3, "relative": 3e-5, "consistency": 1e-3},
    "fp16": {"kl_mean": 0.001, "consistency_kl": 0.001},
    "int8": {"kl_mean": 0.01, "consistency_kl": 0.01},
    "int4": {"kl_mean": 0.1, "consistency_kl": 0.1},
}

# The KL divergence of one position may be this many times the limit of the mean.
WORST = 100


@dataclass(frozen=True)
class Judgement:
    """One figure and the limit that was applied to it."""

    name: str
    value: float
    limit: float
    ok: bool

    @classmethod
    def of(cls, name: str, value: float, limit: float) -> Judgement:
        """Judge one figure; a NaN is outside every limit."""
        return cls(name, value, limit, value <= limit)


def limits_for(precision: str, overrides: Mapping[str, float] | None = None) -> dict[str, float]:
    """The limits of a precision (a key of LIMITS), some of them replaced by `overrides`.

    Raises UsageError for an override whose name no precision has, and for a value that is not a
    finite number of 0 or more.
    """
    known = {name for row in LIMITS.values() for name in row}
    unknown = sorted(set(overrides or {}) - known)
    if unknown:
        raise UsageError(
            f"no limit is called {', '.join(unknown)}: there are {', '.join(sorted(known))}"
        )
    for name, value in (overrides or {}).items():
        if not 0 <= value < math.inf:  # refuses NaN, too
            raise UsageError(f"the limit {name} is {value}, expected a number of 0 or more")
    return {**LIMITS[precision], **(overrides or {})}


def judge(
    figures: Figures,
    consistency: Mapping[str, float],
    limits: Mapping[str, float],
    context: Mapping[str, float] | None = None,
) -> list[Judgement]:
    """Apply every limit to its figures; a figure without a limit is left out.

    figures: over the proof text. consistency: a model compared with itself, see
    measure.self_consistency. context: over the whole context, see whole_context.compare_context.
    """
    relative = limits.get("relative", 0.0) * figures.largest_logit
    return [
        *_judge_text(figures, limits, relative),
        *_judge_context(context or {}, limits, relative),
        *_judge_consistency(consistency, limits, relative),
    ]


def _judge_text(
    figures: Figures, limits: Mapping[str, float], relative: float
) -> Iterator[Judgement]:
    if "max_abs" in limits:
        allowed = max(limits["max_abs"], relative)
        yield Judgement.of("max_abs", figures.max_abs, allowed)
        # Two logits may each be off by `allowed`, in opposite directions.
        yield Judgement.of("tie_gap", figures.tie_gap, 2 * allowed)
    if "kl_mean" in limits:
        yield Judgement.of("kl_mean", figures.kl_mean, limits["kl_mean"])


def _judge_context(
    context: Mapping[str, float], limits: Mapping[str, float], relative: float
) -> Iterator[Judgement]:
    for name, value in context.items():
        if name == "context_max_abs" and "max_abs" in limits:
            yield Judgement.of(name, value, max(limits["max_abs"], relative))
        elif name == "context_kl" and "kl_mean" in limits:
            yield Judgement.of(name, value, limits["kl_mean"])
        elif name == "context_kl_max" and "kl_mean" in limits:
            yield Judgement.of(name, value, limits["kl_mean"] * WORST)


def _judge_consistency(
    consistency: Mapping[str, float], limits: Mapping[str, float], relative: float
) -> Iterator[Judgement]:
    for name, value in consistency.items():
        if name.endswith("_kl") and "consistency_kl" in limits:
            yield Judgement.of(name, value, limits["consistency_kl"])
        elif not name.endswith("_kl") and "consistency" in limits:
            yield Judgement.of(name, value, max(limits["consistency"], relative))
