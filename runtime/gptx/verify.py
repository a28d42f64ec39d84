"""Prove an artifact's certificate again on this machine: its files' hashes, then its figures, without torch.

It passes when this machine is inside the certificate's limits, not when the figures are equal: another CPU rounds
otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gptx.chat import common_length
from gptx.compare import Figures, mean_kl
from gptx.errors import ArtifactError
from gptx.folders import MANIFEST
from gptx.limits import LIMITS, judge
from gptx.reference import Reference, compare

if TYPE_CHECKING:
    from gptx.artifact import Manifest
    from gptx.model import Model


@dataclass(frozen=True)
class Row:
    name: str
    certified: str
    here: str
    limit: str
    ok: bool


@dataclass
class Report:
    graph: str = ""  # the file that was proved, within the artifact
    decode: str = ""  # that of single rows, where they have their own
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return all(row.ok for row in self.rows)


def verify(
    path: str | Path,
    *,
    device: str = "cpu",
    threads: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Report:
    """Check hashes and figures of the artifact at `path`; `progress` is called with the share done, 0 to 1.

    Raises ArtifactError when a file differs from its hash or the artifact cannot be loaded at all, ProviderError when the
    device cannot be used.
    """
    import gptx
    from gptx import artifact

    told = progress or (lambda share: None)
    manifest = artifact.read(path)
    artifact.check_hashes(manifest)  # first: what is damaged is not to be opened
    certificate = checked_certificate(manifest)
    told(0.1)
    with gptx.load(path, device=device, threads=threads) as model:
        reference = Reference.load(model.path)
        done = 0

        def logits(window: list[int]) -> np.ndarray:
            nonlocal done
            values = forced_logits(model, window)
            done += len(window)
            told(0.1 + 0.8 * done / len(reference.tokens))
            return values

        classes = manifest.model.n_class > 0
        figures = compare(reference, logits, classes=classes)
        consistency = self_consistency(model, reference.tokens[: reference.windows[0, 1]].tolist())
        report = _report(certificate, figures, consistency, model.manifest.precision)
        if not classes:
            report.rows.append(_greedy_row(model, reference, certificate))
        told(1.0)
        report.graph = model.graph.relative_to(model.path).as_posix()
        report.decode = model.decode.relative_to(model.path).as_posix() if model.decode else ""
        single = f", single rows in {report.decode}" if report.decode else ""
        report.notes.append(f"ran {report.graph} on {model.provider}{single}")
        if certificate.get("accepted"):
            report.notes.append("this artifact was outside its limits when it was made, and was accepted as it is")
    return report


def checked_certificate(manifest: Manifest) -> dict[str, Any]:
    """The certificate, with all that verify reads of it. Raises ArtifactError."""
    certificate: Any = manifest.certificate
    if not certificate:
        raise ArtifactError(f"{manifest.path} carries no certificate: export or quantize it with gptx")
    parts = ("figures", "consistency", "limits", "greedy")
    if not isinstance(certificate, dict) or not all(isinstance(certificate.get(part), dict) for part in parts):
        raise ArtifactError(
            f"{manifest.path / MANIFEST}: certificate lacks one of {', '.join(parts)}: export the artifact again"
        )
    needed = {name: certificate["limits"].get(name) for name in LIMITS[manifest.precision]}
    values = {**certificate["limits"], **needed}
    wrong = [name for name, value in values.items() if isinstance(value, bool) or not isinstance(value, int | float)]
    if wrong:
        raise ArtifactError(
            f"{manifest.path / MANIFEST}: certificate has no number as the limit of {', '.join(wrong)}: "
            "export the artifact again"
        )
    return certificate


def forced_logits(model: Model, window: list[int]) -> np.ndarray:
    """Logits after every token of one window, (length, vocab_size) float32."""
    with model.session(1, size=len(window)) as session:
        return session.feed([window], all_logits=True)[0]


def greedy_tokens(model: Model, prompt: list[int], n: int) -> list[int]:
    """n tokens of plain argmax, end-of-text or not."""
    tokens: list[int] = []
    with model.session(1) as session:
        logits = session.feed([prompt])
        while len(tokens) < n:
            tokens.append(int(logits[0].argmax()))
            if len(tokens) < n:
                logits = session.feed([tokens[-1:]])
    return tokens


def self_consistency(model: Model, window: list[int]) -> dict[str, float]:
    """How far ways of computing the same thing are apart, that a user expects to be one: the largest difference of a logit,
    and (named _kl) the mean KL.

    cached: a token at a time against all at once. pieces: in two pieces against all at once.
    batch: rows alone against the same rows beside shorter and longer ones.
    """
    text = window[:48]
    whole = forced_logits(model, text)
    with model.session(1) as session:
        cached = np.stack([session.feed([[token]])[0] for token in text])
    cut = max(1, len(text) // 3)
    with model.session(1) as session:
        parts = [piece for piece in (text[:cut], text[cut:]) if piece]
        pieces = np.concatenate([session.feed([piece], all_logits=True)[0] for piece in parts])
    alone, beside = _in_a_batch(model, text)
    differences = {"cached": (whole, cached), "pieces": (whole, pieces), "batch": (alone, beside)}
    largest = {name: float(np.abs(a - b).max(initial=0.0)) for name, (a, b) in differences.items()}
    return {**largest, **{f"{name}_kl": mean_kl(a, b) for name, (a, b) in differences.items()}}


def _in_a_batch(model: Model, text: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Logits of up to five steps of three rows, beginnings of `text` of different lengths: each alone, and all together."""
    starts = [max(1, len(text) * share // 8) for share in (4, 2, 6)]
    steps = min(4, len(text) - max(starts))

    def run(starts: list[int]) -> np.ndarray:
        with model.session(len(starts)) as session:
            logits = [session.feed([text[:start] for start in starts])]
            logits += [session.feed([[text[start + step]] for start in starts]) for step in range(steps)]
            return np.stack(logits, axis=1)  # (rows, steps, vocab_size)

    alone = np.concatenate([run([start]) for start in starts])
    return alone.reshape(-1, alone.shape[-1]), run(starts).reshape(-1, alone.shape[-1])


def _report(certificate: dict, figures: Figures, consistency: dict[str, float], precision: str) -> Report:
    report = Report()
    here = {**figures.to_dict(), **consistency}
    # the reference's own figures where the certificate has them (a quantized artifact's come from its fp32 artifact)
    certified = {**certificate["figures"], **certificate["consistency"]}
    judged = {row.name: row for row in judge(figures, consistency, certificate["limits"])}
    for name in [*figures.to_dict(), *consistency]:
        if name in ("positions", "largest_logit") or here[name] is None:
            continue
        row = judged.get(name)
        limit, ok = (f"{row.limit:.3g}", row.ok) if row else ("", bool(np.isfinite(here[name])))
        report.rows.append(Row(name, f"{certified.get(name, float('nan')):.6g}", f"{here[name]:.6g}", limit, ok))
    report.notes.append(
        f"{figures.positions} positions of the proof text against the fp32 reference's 64 highest logits"
        f" ({precision}; certified on {certificate['figures'].get('positions', 'unknown')} positions with all logits)"
    )
    return report


def _greedy_row(model: Model, reference: Reference, certificate: dict) -> Row:
    expected = reference.greedy_tokens.tolist()
    got = greedy_tokens(model, reference.greedy_prompt.tolist(), len(expected))
    same = common_length(expected, got)
    certified = certificate["greedy"].get("identical", "unknown")
    return Row("greedy_identical", f"{certified} of {len(expected)}", f"{same} of {len(expected)}", "", True)
