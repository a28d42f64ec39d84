"""A certificate, as gptx.json holds it, in rows that a person reads: each figure with the limit it was judged by."""

from __future__ import annotations

from typing import Any

from gptx.parity.limits import judge
from gptx.parity.metrics import Figures

Rows = list[tuple[str, str]]

# What each figure is, for a reader who meets it for the first time. KL divergence is how much one prediction of the next
# token differs from another, in nats; 0 is no difference.
MEANING = {
    "kl_mean": "difference of the predictions (KL, nats): mean",
    "kl_p999": "the same: what 999 of 1000 positions stay below",
    "same_top1": "share of positions with the same likeliest token",
    "tie_gap": "where it is another: how far that one is behind, largest",
    "max_abs": "difference of a logit: largest",
    "mean_abs": "difference of a logit: mean",
    "perplexity_reference": "perplexity of the reference on these tokens",
    "perplexity": "perplexity of this model on them",
    "perplexity_error": "its standard error: a short text says little",
    "context_kl": "KL over the whole context: mean",
    "context_kl_max": "KL over the whole context: worst position",
    "context_max_abs": "difference of a logit over the whole context: largest",
    "cached": "a token at a time or all at once: logits differ by",
    "pieces": "a text in two pieces or at once: logits differ by",
    "batch": "rows in a batch or alone: logits differ by",
    "cached_kl": "a token at a time or all at once: KL",
    "pieces_kl": "a text in two pieces or at once: KL",
    "batch_kl": "rows in a batch or alone: KL",
    "greedy_identical": "greedy text: tokens equal to the reference's, of {greedy}",
}


def certificate_rows(certificate: dict[str, Any]) -> Rows:
    """A certificate's figures as (name, value [limit]), whatever figures it has."""
    if not certificate:
        return [("certificate", "none")]
    limits = _limits(certificate)
    rows = [
        ("against", f"{certificate.get('against', 'unknown')}, on {_text(certificate.get('text'))}")
    ]
    figures = certificate.get("figures") or {}
    rows += [
        (name, _figure(value, limits.get(name)))
        for name, value in figures.items()
        if value is not None
    ]
    consistency = certificate.get("consistency") or {}
    rows += [(name, _figure(value, limits.get(name))) for name, value in consistency.items()]
    if (greedy := certificate.get("greedy")) and greedy.get("compared") != 0:
        rows.append(
            (
                "greedy text",
                f"{greedy.get('identical')} of {greedy.get('compared')} tokens identical",
            )
        )
    if decode := certificate.get("decode"):
        rows.append(("decode graph", f"proved by {', '.join(decode)}: single rows run in it"))
    if environment := certificate.get("environment"):
        where = (
            environment.get("provider"),
            environment.get("cpu"),
            f"onnxruntime {environment.get('onnxruntime')}",
        )
        rows.append(("measured on", ", ".join(str(part) for part in where if part)))
    links = certificate.get("chain") or []
    if len(links) > 1:
        rows += [(f"link {n}", _link(link)) for n, link in enumerate(links, 1)]
    if certificate.get("accepted"):
        rows.append(
            (
                "accepted",
                f"outside its limits: {'; '.join(certificate.get('outside') or ['not said where'])}",
            )
        )
    return rows


def _limits(certificate: dict[str, Any]) -> dict[str, float]:
    """The limit of each figure that has one, as it was applied."""
    try:
        figures = Figures(**certificate["figures"])
        rows = judge(figures, certificate.get("consistency") or {}, certificate["limits"])
    except (KeyError, TypeError):  # another version's figures
        return {}
    return {row.name: row.limit for row in rows}


def _link(link: dict[str, Any]) -> str:
    figures = [
        f"{name} {_figure(value, None)}" for name, value in link.items() if name != "against"
    ]
    return f"{link.get('against')}: {', '.join(figures)}"


def _text(text: Any) -> str:
    if isinstance(text, dict):
        return ", ".join(
            f"{key} {str(value)[:16]}"
            for key, value in text.items()
            if not isinstance(value, dict | list)
        )
    return str(text or "an unnamed text")


def _figure(value: Any, limit: float | None) -> str:
    shown = f"{value:.6g}" if isinstance(value, int | float) else str(value)
    return shown if limit is None else f"{shown}  (limit {limit:.3g})"
