"""Sentences under the tables of gptx verify: what ran, what it was compared with, what is open."""

from __future__ import annotations

from typing import Any

from gptx.artifact.folders import MANIFEST
from gptx.artifact.manifest import Manifest
from gptx.parity.measure import Measured
from gptx.parity.metrics import Figures
from gptx.parity.reference import Reference
from gptx.parity.report import Report
from gptx.parity.weight_checks import is_graph

_NOTHING_CARRIED = "not proved, as the artifact carries nothing to prove it with"


def what_ran(report: Report, manifest: Manifest, provider: str) -> list[str]:
    """The graphs that ran on this machine, and those of which only the bytes were checked."""
    native = f" with native kernels {report.kernels}" if report.kernels else ""
    rows = f", single rows in {report.decode}" if report.decode else ""
    notes = [f"ran {report.graph} on {provider}{native}{rows}"]
    idle = [
        name
        for name in manifest.files
        if is_graph(name) and name not in (report.graph, report.decode)
    ]
    if idle:
        notes.append(
            f"not run here, so only hashes and weights of these were checked: {', '.join(idle)}"
        )
    return notes


def what_was_compared(certificate: dict[str, Any], reference: Reference) -> list[str]:
    """What the figures of the report are measured against."""
    positions, top = reference.top_ids.shape
    notes = [
        f"compared with the fp32 reference that the artifact carries: the {top} highest logits"
        f" after each of {positions} tokens of the proof text"
    ]
    if against := certificate.get("context_against"):
        notes.append(f"the whole context is compared with {against!s:.200}")
    return notes


def what_is_not_proved(
    manifest: Manifest, certificate: dict[str, Any], reference: Reference, measured: Measured
) -> list[str]:
    """What is open: figures that the certificate lacks, and claims not proved on this machine."""
    notes = [
        *_missing_figures(certificate, measured),
        *_unproved_positions(manifest, reference, measured),
        f"stated by {MANIFEST} alone: where the model comes from, its licence, how it was made",
    ]
    if reference.seal is None:
        notes.append(
            "not proved, as the artifact carries no seal: that files and gptx.json are as they"
            " were when it was made"
        )
    if reference.words is None:
        notes.append(f"{_NOTHING_CARRIED}: tokenizer, end of text, chat template")
    return notes


def _missing_figures(certificate: dict[str, Any], measured: Measured) -> list[str]:
    verified = certificate.get("verified") or {}
    notes = []
    if not verified:
        notes.append(
            "an older gptx made the artifact: it does not say what these figures were on the"
            " machine that made it"
        )
    elif lacking := sorted(measured.to_dict().keys() - verified.keys()):
        notes.append(f"the certificate does not state {', '.join(lacking)}")
    every = set(Figures.__dataclass_fields__)
    if lacking := sorted(every - certificate["figures"].keys()):
        notes.append(f"the certificate's figures lack {', '.join(lacking)}")
    return notes


def _unproved_positions(manifest: Manifest, reference: Reference, measured: Measured) -> list[str]:
    if reference.context is None:
        return [f"{_NOTHING_CARRIED}: positions beyond the proof text"]
    if not measured.context:
        return ["not proved on this device: positions beyond the proof text"]
    if reference.context.last + 1 < manifest.model.n_ctx:
        return [f"not proved: positions from {reference.context.last + 1:,} on"]
    return []
