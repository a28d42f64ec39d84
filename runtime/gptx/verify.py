"""Prove an artifact's certificate again on this machine, without torch.

In: the folder of an artifact. Out: a Report on its files, weights, texts and figures. An artifact
passes if its figures are within the certificate's limits; they need not equal the certified ones,
because another CPU rounds differently. The report's notes say what cannot be proved here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

import gptx
from gptx.artifact.folders import MANIFEST
from gptx.artifact.hashes import check_hashes
from gptx.artifact.manifest import Manifest, read_manifest
from gptx.errors import ArtifactError
from gptx.model import Model
from gptx.parity.certificate import checked_certificate, claims
from gptx.parity.checks import check_graphs, check_seal, check_text
from gptx.parity.exactness import check_exactness
from gptx.parity.measure import (
    Measured,
    forced_logits,
    greedy_tokens,
    measure,
    self_consistency,
    tokens_to_compare,
)
from gptx.parity.reference import Reference
from gptx.parity.report import Check, Report, Row
from gptx.parity.report_notes import what_is_not_proved, what_ran, what_was_compared
from gptx.parity.report_rows import rows_of
from gptx.parity.same_bits import check_bits, stated_hashes

__all__ = [
    "Check",
    "Measured",
    "Report",
    "Row",
    "checked_certificate",
    "forced_logits",
    "greedy_tokens",
    "measure",
    "self_consistency",
    "verify",
]

# Shares of all work, for the progress: hash the files, search the weights, run the model.
HASHES, WEIGHTS, RUNNING = 0.15, 0.15, 0.7


def verify(
    path: str | Path,
    *,
    device: str = "cpu",
    threads: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Report:
    """Check the artifact in the folder `path` and measure its figures again.

    device: "cpu" or "cuda". threads: None takes one per core. progress: called with the share of
    the work that is done, 0 to 1.

    Raises ArtifactError if a file differs from its hash, the certificate or the reference is
    broken, or the artifact cannot be loaded; ProviderError if the device cannot be used.
    """
    done = _Progress(progress or (lambda share: None))
    manifest = read_manifest(path)
    states = _file_states(manifest)
    # Hashes come first, so that nothing opens a damaged file.
    done.begin(HASHES, sum(facts.size for facts in manifest.files.values()))
    check_hashes(manifest, lambda name, size: done.advance(size))
    certificate = checked_certificate(manifest)
    reference = Reference.load(manifest.path, manifest.model)

    report = Report()
    _check_files(report, manifest, reference, done)
    with gptx.load(path, device=device, threads=threads) as model:
        report.checks += check_text(model, reference)
        measured = _run(report, model, reference, done)
        checks, other_bits = check_bits(stated_hashes(manifest), measured.logits_sha256, reference)
        report.checks += checks
        if model.kernels and not manifest.model.n_class:
            report.checks.append(check_exactness(model, reference, measured))
        report.notes = [
            *what_ran(report, manifest, model.provider),
            *what_was_compared(certificate, reference),
            *report.notes,
            *other_bits,
            *what_is_not_proved(manifest, certificate, reference, measured),
        ]
    if _file_states(manifest) != states:
        # The bytes that ran may not be the bytes that were hashed.
        raise ArtifactError(
            f"{path} was changed while it was verified: verify it again, when nothing writes to it"
        )
    native = bool(report.kernels)
    report.rows = rows_of(manifest, certificate, reference, measured, native=native)
    _add_claims(report, manifest, certificate)
    return report


def _check_files(report: Report, manifest: Manifest, reference: Reference, done: _Progress) -> None:
    """Everything that needs no inference: hashes (checked before), the seal, stored weights."""
    hashed = f"{len(manifest.files)} files have the listed sizes and hashes"
    report.checks.append(Check("files", hashed, True))
    if reference.seal is not None:
        report.checks.append(check_seal(reference.seal, manifest))
    graphs = [facts.size for name, facts in manifest.files.items() if name.startswith("onnx/")]
    done.begin(WEIGHTS, sum(graphs))
    checks, notes = check_graphs(manifest, done.advance)
    report.checks += checks
    report.notes += notes


def _run(report: Report, model: Model, reference: Reference, done: _Progress) -> Measured:
    """Run the model and name in `report` the graphs that ran."""
    report.graph = model.graph.relative_to(model.path).as_posix()
    report.kernels = model.kernels or ""
    report.decode = model.decode.relative_to(model.path).as_posix() if model.decode else ""
    done.begin(RUNNING, tokens_to_compare(reference))
    with np.errstate(all="ignore"):  # NaN and infinity show in the figures
        measured = measure(model, reference, done.advance)
    done.begin(0, 0)
    report.logits_sha256 = list(measured.logits_sha256)
    return measured


def _add_claims(report: Report, manifest: Manifest, certificate: dict[str, object]) -> None:
    """What the certificate claims: about itself, and figures that need the original model."""
    checks, notes = claims(manifest, certificate)
    report.checks += checks
    report.notes += notes
    figures = certificate["figures"]
    assert isinstance(figures, dict)
    report.stated = {name: value for name, value in figures.items() if value is not None}
    if differing := [row.name for row in report.rows if row.differs]:
        report.notes.append(
            f"{', '.join(differing)}: not what the certificate says, by more than another"
            " processor explains; the certificate may have been edited"
        )


def _file_states(manifest: Manifest) -> list[tuple[int, ...] | None]:
    """Device, inode, size and time of change of each file; None for a file that is gone."""
    return [_file_state(manifest.path / name) for name in (MANIFEST, *manifest.files)]


def _file_state(file: Path) -> tuple[int, ...] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


class _Progress:
    """Turns the progress of successive stages into the share of all work that is done."""

    def __init__(self, report: Callable[[float], None]) -> None:
        self._report = report
        self._before = 0.0  # share of the stages that are done
        self._share = 0.0  # share of the current stage
        self._done, self._total = 0, 1  # amounts of the current stage, in its own unit

    def begin(self, share: float, total: int) -> None:
        """End the current stage and begin the next one.

        share: of all work, 0 to 1. total: the length of the stage, in the unit that `advance` gets.
        """
        self._before, self._share = self._before + self._share, share
        self._done, self._total = 0, max(total, 1)
        self._report(min(self._before, 1.0))

    def advance(self, amount: int) -> None:
        """Report that `amount` more of the current stage is done, in the unit of its total."""
        self._done += amount
        of_stage = min(self._done / self._total, 1.0)
        self._report(min(self._before + self._share * of_stage, 1.0))
