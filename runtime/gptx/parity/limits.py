"""How far an artifact may be from its reference: the one table of limits, and the judgement of figures by it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from gptx.errors import UsageError
from gptx.parity.metrics import Figures

# Two fp32 implementations of one model already differ by about 1e-4 (SmolLM2: PyTorch's fp32 from fp64 by 1.3e-4), so
# fp32 is judged by the largest difference; what rounds is judged by KL, which says what it does to the text. The same
# holds for a model against itself (consistency): where activations are rounded, a difference of 1e-6 between two kernels
# of one operator turns into a whole step of 8 bits, as large as the rounding itself.
# `relative` is of the largest logit, where that allows more.
LIMITS: dict[str, dict[str, float]] = {
    "fp32": {"max_abs": 1e-3, "relative": 3e-5, "consistency": 1e-3},
    "fp16": {"kl_mean": 0.001, "consistency_kl": 0.001},
    "int8": {"kl_mean": 0.01, "consistency_kl": 0.01},
    "int4": {"kl_mean": 0.1, "consistency_kl": 0.1},
}


WORST = 100  # a single position of the context may be so many times as far off as the mean of all


@dataclass(frozen=True)
class Judgement:
    name: str
    value: float
    limit: float
    ok: bool


def limits_for(precision: str, overrides: Mapping[str, float] | None = None) -> dict[str, float]:
    """The table's row, with the caller's own limits on top. UsageError for a name that is in no row and
    for a value that is none."""
    known = {name for row in LIMITS.values() for name in row}
    unknown = sorted(set(overrides or {}) - known)
    if unknown:
        raise UsageError(
            f"no limit is called {', '.join(unknown)}: there are {', '.join(sorted(known))}"
        )
    for name, value in (overrides or {}).items():
        if not 0 <= value < math.inf:  # NaN neither
            raise UsageError(f"the limit {name} is {value}, expected a number of 0 or more")
    return {**LIMITS[precision], **(overrides or {})}


def judge(
    figures: Figures,
    consistency: Mapping[str, float],
    limits: Mapping[str, float],
    context: Mapping[str, float] | None = None,
) -> list[Judgement]:
    """Each limit applied. `consistency` holds the differences of a model from itself: cached, in a batch. `context` holds
    the figures of whole_context.py, over positions that the text does not reach."""
    rows = []
    relative = limits.get("relative", 0.0) * figures.largest_logit
    if "max_abs" in limits:
        allowed = max(limits["max_abs"], relative)
        rows.append(Judgement("max_abs", figures.max_abs, allowed, figures.max_abs <= allowed))
        rows.append(
            Judgement("tie_gap", figures.tie_gap, 2 * allowed, figures.tie_gap <= 2 * allowed)
        )
    if "kl_mean" in limits:
        rows.append(
            Judgement(
                "kl_mean", figures.kl_mean, limits["kl_mean"], figures.kl_mean <= limits["kl_mean"]
            )
        )
    for name, value in (context or {}).items():
        if name == "context_max_abs" and "max_abs" in limits:
            allowed = max(limits["max_abs"], relative)
        elif name in ("context_kl", "context_kl_max") and "kl_mean" in limits:
            allowed = limits["kl_mean"] * (WORST if name == "context_kl_max" else 1)
        else:
            continue
        rows.append(Judgement(name, value, allowed, value <= allowed))
    for name, value in consistency.items():
        limit = limits.get("consistency_kl" if name.endswith("_kl") else "consistency")
        if limit is not None:
            allowed = limit if name.endswith("_kl") else max(limit, relative)
            rows.append(Judgement(name, value, allowed, value <= allowed))
    return rows
