"""The figures of this machine beside the certified ones: are they within their limits, and alike?

Another CPU rounds differently, so equal figures are not expected. A figure `differs` from its
certified value only if the gap is larger than rounding explains; then someone may have edited the
certificate.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gptx.artifact.manifest import Manifest
from gptx.parity.certificate import is_json_number
from gptx.parity.certificate_rows import MEANING
from gptx.parity.limits import judge
from gptx.parity.measure import CONSISTENCY, Measured
from gptx.parity.reference import Reference
from gptx.parity.report import Row

# Facts about the text and the reference, which say nothing about the artifact's quality.
_NOT_SHOWN = ("positions", "largest_logit")


def certified_figures(manifest: Manifest, *, native: bool) -> dict[str, Any]:
    """What gptx.json states for the figures of gptx verify.

    native: of the step graph; else of model.onnx and the graphs compiled from it. If only the other
    one was measured when the artifact was made, its figures stand for both, except those of
    self_consistency: these are of the operators, not of the weights.
    """
    made: dict[str, Any] = manifest.certificate.get("verified") or {}
    made_native = "logits_sha256" in manifest.certificate
    if native == made_native:
        return made
    upgraded = manifest.raw.get("upgraded") or {}
    other = upgraded.get("figures") if native else manifest.certificate.get("portable")
    if isinstance(other, dict):
        return other
    return {name: value for name, value in made.items() if name not in CONSISTENCY}


def rows_of(
    manifest: Manifest,
    certificate: dict[str, Any],
    reference: Reference,
    measured: Measured,
    *,
    native: bool,
) -> list[Row]:
    """A Row for every figure in `measured`. native: it was measured on the step graph."""
    stated = certified_figures(manifest, native=native)
    certified = {name: value for name, value in stated.items() if is_json_number(value)}
    judgements = {
        one.name: one
        for one in judge(
            measured.figures, measured.consistency, certificate["limits"], measured.context
        )
    }
    rows = []
    for name, here in measured.to_dict().items():
        if name in _NOT_SHOWN:
            continue
        judgement, was = judgements.get(name), certified.get(name)
        limit = judgement.limit if judgement else None
        ok = judgement.ok if judgement else bool(np.isfinite(here))
        exact = manifest.precision == "fp32"
        differs = was is not None and _differs(name, was, here, limit, exact=exact)
        if name == "perplexity_reference":
            # Computed from stored numbers alone, so no machine may find another value.
            ok = ok and not differs
        what = MEANING[name].format(greedy=len(reference.greedy_tokens))
        rows.append(Row(name, what, was, here, limit, ok, differs))
    return rows


def _differs(name: str, was: float, here: float, limit: float | None, *, exact: bool) -> bool:
    """True if the gap is larger than the rounding of another CPU explains.

    exact: the weights are fp32. In quantized artifacts one rounding step changes greedy text and
    single logits, so these figures have no rule there.
    """
    gap = abs(here - was)
    if name == "perplexity_reference":
        return not gap <= 1e-3 * abs(here)
    if name.startswith("perplexity"):
        return not gap <= 0.05 * abs(here)
    if name == "same_top1":
        return not gap <= 0.05
    if name == "mean_abs":
        return not gap <= 1e-3 + 2 * min(was, here)
    if limit is not None or "kl" in name:
        return not gap <= max(0.1 * (limit or 0.01), 0.5 * max(was, here))
    return name == "greedy_identical" and exact and gap > 0
