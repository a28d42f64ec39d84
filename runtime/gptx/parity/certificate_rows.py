"""A certificate as rows for people: each figure in gptx.json with the limit that judges it."""

from __future__ import annotations

from typing import Any

from gptx.parity.limits import judge
from gptx.parity.metrics import Figures

Rows = list[tuple[str, str]]

# The meaning of each figure. KL divergence says how much one prediction of the next token differs
# from another, in nats (natural logarithm); 0 is no difference.
MEANING = {
    "kl_mean": "KL divergence from the reference, nats: mean",
    "kl_p999": "KL divergence: 99.9th percentile of all positions",
    "same_top1": "share of positions with the same most likely token",
    "tie_gap": "where the token differs: its largest lead in the reference",
    "max_abs": "difference of a logit: largest",
    "mean_abs": "difference of a logit: mean",
    "perplexity_reference": "perplexity of the reference on the proof text",
    "perplexity": "perplexity of this model on the proof text",
    "perplexity_error": "standard error of that perplexity",
    "context_kl": "KL divergence over the whole context: mean",
    "context_kl_max": "KL divergence over the whole context: worst position",
    "context_max_abs": "difference of a logit over the whole context: largest",
    "cached": "token by token or all at once: difference of a logit",
    "pieces": "a text in two pieces or at once: difference of a logit",
    "batch": "rows in a batch or alone: difference of a logit",
    "cached_kl": "token by token or all at once: KL divergence",
    "pieces_kl": "a text in two pieces or at once: KL divergence",
    "batch_kl": "rows in a batch or alone: KL divergence",
    "greedy_identical": "greedy tokens equal to the reference's, of {greedy}",
}


# Figures that certificate_rows always shows, even if no limit judges them
_HEADLINES = ("max_abs", "kl_mean", "same_top1", "perplexity_reference", "perplexity")


def certificate_rows(certificate: dict[str, Any]) -> Rows:
    """A certificate as rows of (name, words).

    Certificates of other versions of gptx are shown, too, with the figures that they have.
    """
    if not certificate:
        return [("certificate", "none")]
    return [
        (
            "against",
            f"{certificate.get('against', 'unknown')}, on {_text(certificate.get('text'))}",
        ),
        *_figure_rows(certificate),
        *_run_rows(certificate),
        *_chain_rows(certificate.get("chain") or []),
        *_accepted_rows(certificate),
    ]


def _figure_rows(certificate: dict[str, Any]) -> Rows:
    """The headline figures and those with a limit; all figures where no limit is known."""
    limits = _limits(certificate)
    figures = {**(certificate.get("figures") or {}), **(certificate.get("consistency") or {})}
    rows = [
        (name, _figure(value, limits.get(name)))
        for name, value in figures.items()
        if value is not None and (not limits or name in limits or name in _HEADLINES)
    ]
    if (greedy := certificate.get("greedy")) and greedy.get("compared") != 0:
        same = f"{greedy.get('identical')} of {greedy.get('compared')} tokens identical"
        rows.append(("greedy text", same))
    return rows


def _run_rows(certificate: dict[str, Any]) -> Rows:
    """Which graphs the figures are about, and where they were measured."""
    rows: Rows = []
    consistency = certificate.get("consistency") or {}
    ways = [name for name in ("cached", "pieces", "batch") if consistency.get(name) == 0]
    if ways and (certificate.get("environment") or {}).get("kernels"):
        same = "the same logits to the bit as whole and alone"
        rows.append(("exact", f"{', '.join(ways)}: {same}"))
    if decode := certificate.get("decode"):
        rows.append(("decode graph", f"proved by {', '.join(decode)}: single rows run in it"))
    if environment := certificate.get("environment"):
        kernels = environment.get("kernels")
        where = (
            environment.get("provider"),
            kernels and f"native kernels {kernels}",
            environment.get("cpu"),
            f"onnxruntime {environment.get('onnxruntime')}",
        )
        rows.append(("measured on", ", ".join(str(part) for part in where if part)))
    return rows


def _chain_rows(links: list[dict[str, Any]]) -> Rows:
    """The certificates of a chain: PyTorch to fp32, fp32 to int8."""
    if len(links) < 2:
        return []
    return [(f"link {n}", _link(link)) for n, link in enumerate(links, 1)]


def _accepted_rows(certificate: dict[str, Any]) -> Rows:
    if not certificate.get("accepted"):
        return []
    outside = "; ".join(certificate.get("outside") or ["not said where"])
    return [("accepted", f"outside its limits: {outside}")]


def _limits(certificate: dict[str, Any]) -> dict[str, float]:
    """The limit of each figure that is judged; {} for figures of another version of gptx."""
    try:
        figures = Figures(**certificate["figures"])
        rows = judge(figures, certificate.get("consistency") or {}, certificate["limits"])
    except (KeyError, TypeError):
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
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    return shown if limit is None else f"{shown}  (limit {limit:.3g})"
