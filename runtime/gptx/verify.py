"""Prove an artifact's certificate again on this machine: its files, its weights, what it makes of text, and its figures,
without torch.

It passes when this machine is inside the certificate's limits, not when the figures are equal: another CPU rounds
otherwise. What cannot be proved here is told as stated by the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gptx.artifact.folders import MANIFEST
from gptx.artifact.json_files import read_side_file
from gptx.artifact.manifest import some
from gptx.errors import ArtifactError
from gptx.parity.certificate_rows import MEANING
from gptx.parity.limits import LIMITS, judge
from gptx.parity.metrics import Figures, mean_kl
from gptx.parity.reference import Reference, compare
from gptx.parity.seal import Seal, changes
from gptx.parity.text_record import Check, compare_words
from gptx.parity.weight_checks import (
    check_tables,
    check_weights,
    graphs_of,
    is_graph,
    rotary_problems,
)
from gptx.parity.whole_context import compare_context, logits_at
from gptx.text.prefix import common_length

if TYPE_CHECKING:
    from gptx.artifact.manifest import Manifest
    from gptx.model import Model


@dataclass(frozen=True)
class Row:
    """One figure. `certified`: as it was on the machine that made the artifact, if that is known; `here`: on this one."""

    name: str
    what: str
    certified: float | None
    here: float
    limit: float | None
    ok: bool  # inside its limit, or without a limit and a finite number
    differs: bool = False  # from what is certified, by more than another CPU explains


@dataclass
class Report:
    graph: str = ""  # the file that was proved, within the artifact
    decode: str = ""  # that of single rows, where they have their own
    checks: list[Check] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    stated: dict[str, Any] = field(
        default_factory=dict
    )  # figures of the certificate that cannot be proved here
    notes: list[str] = field(
        default_factory=list
    )  # what ran, what it was compared with, and what is odd or not proved

    @property
    def passed(self) -> bool:
        return all(row.ok for row in self.rows) and all(check.ok for check in self.checks)


@dataclass(frozen=True)
class Measured:
    """The figures that verify computes, from what the artifact carries alone."""

    figures: Figures
    consistency: dict[str, float]
    context: dict[str, float]
    greedy: (
        int | None
    )  # tokens of greedy text that are the reference's; None for a classification head

    def to_dict(self) -> dict[str, float | int]:
        """By name, as the certificate keeps them; without those that there are not."""
        every = {
            **self.figures.to_dict(),
            **self.context,
            **self.consistency,
            "greedy_identical": self.greedy,
        }
        return {name: value for name, value in every.items() if value is not None}


def verify(
    path: str | Path,
    *,
    device: str = "cpu",
    threads: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Report:
    """Check the artifact at `path`; `progress` is called with the share done, 0 to 1.

    Raises ArtifactError when a file differs from its hash or the artifact cannot be loaded at all, ProviderError when the
    device cannot be used.
    """
    import gptx
    from gptx.artifact.manifest import check_hashes, read_manifest

    told = _Progress(progress or (lambda share: None))
    manifest = read_manifest(path)
    before = _states(manifest)
    told.begin(0.15, sum(facts.size for facts in manifest.files.values()))
    check_hashes(
        manifest, lambda name, n: told.advance(n)
    )  # first: what is damaged is not to be opened
    certificate = checked_certificate(manifest)
    reference = Reference.load(manifest.path, manifest.model)
    report = Report()
    report.checks.append(
        Check("files", f"{len(manifest.files)} files have the listed sizes and hashes", True)
    )
    if reference.seal is not None:
        report.checks.append(_unchanged(reference.seal, manifest))
    told.begin(
        0.15, sum(facts.size for name, facts in manifest.files.items() if name.startswith("onnx/"))
    )
    _check_graphs(report, manifest, told.advance)
    with gptx.load(path, device=device, threads=threads) as model:
        report.checks += _check_words(model, reference)
        told.begin(0.7, positions(reference))
        with np.errstate(all="ignore"):  # what is no number shows in the figures
            measured = measure(model, reference, told.advance)
        _add_figures(report, manifest, certificate, reference, measured)
        told.begin(0, 0)
        report.graph = model.graph.relative_to(model.path).as_posix()
        report.decode = model.decode.relative_to(model.path).as_posix() if model.decode else ""
        single = f", single rows in {report.decode}" if report.decode else ""
        report.notes.insert(0, f"ran {report.graph} on {model.provider}{single}")
        if idle := [
            name
            for name in manifest.files
            if is_graph(name) and name not in (report.graph, report.decode)
        ]:
            report.notes.append(
                f"not run here, so of these only hashes and weights were checked: {', '.join(idle)}"
            )
    if _states(manifest) != before:  # one set of bytes was hashed, and another may have been run
        raise ArtifactError(
            f"{path} was changed while it was verified: verify it again, when nothing writes to it"
        )
    _judge_certificate(report, manifest, certificate)
    return report


def _states(manifest: Manifest) -> list[tuple[int, ...] | None]:
    """What changes when a file is written; None for one that is gone."""
    return [_state(manifest.path / name) for name in (MANIFEST, *manifest.files)]


def _state(file: Path) -> tuple[int, ...] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


class _Progress:
    """The share of everything that is done, told as stages advance."""

    def __init__(self, told: Callable[[float], None]) -> None:
        self._told, self._before, self._share, self._done, self._total = told, 0.0, 0.0, 0, 1

    def begin(self, share: float, total: int) -> None:
        """A stage that is this share of everything begins; the one before is done."""
        self._before, self._share = self._before + self._share, share
        self._done, self._total = 0, max(total, 1)
        self._told(min(self._before, 1.0))

    def advance(self, amount: int) -> None:
        self._done += amount
        self._told(min(self._before + self._share * min(self._done / self._total, 1.0), 1.0))


def measure(
    model: Model, reference: Reference, progress: Callable[[int], object] = lambda n: None
) -> Measured:
    """Run everything that the artifact carries its reference's answers to."""

    def logits(window: list[int]) -> np.ndarray:
        values = forced_logits(model, window)
        progress(len(window))
        return values

    classes = model.manifest.model.n_class > 0
    figures = compare(reference, logits, classes=classes)
    context: dict[str, float] = {}
    if reference.context is not None:
        context = compare_context(
            reference.context, lambda window, at: logits_at(model, window, at), progress
        )
    consistency = self_consistency(model, reference.tokens[: reference.windows[0, 1]].tolist())
    greedy = None
    if not classes:
        expected = reference.greedy_tokens.tolist()
        greedy = common_length(
            expected, greedy_tokens(model, reference.greedy_prompt.tolist(), len(expected))
        )
    return Measured(figures, consistency, context, greedy)


def positions(reference: Reference) -> int:
    """Tokens that `measure` reports its progress over."""
    return len(reference.tokens) + (
        len(reference.context.context_tokens) if reference.context else 0
    )


def checked_certificate(manifest: Manifest) -> dict[str, Any]:
    """The certificate, with all that verify reads of it. Raises ArtifactError."""
    certificate: Any = manifest.certificate
    where = manifest.path / MANIFEST
    if not certificate:
        raise ArtifactError(
            f"{manifest.path} carries no certificate: export or quantize it with gptx"
        )
    parts = ("figures", "consistency", "limits", "greedy")
    if not isinstance(certificate, dict) or not all(
        isinstance(certificate.get(part), dict) for part in parts
    ):
        raise ArtifactError(
            f"{where}: certificate lacks one of {', '.join(parts)}: export the artifact again"
        )
    needed = {name: certificate["limits"].get(name) for name in LIMITS[manifest.precision]}
    limits = {**certificate["limits"], **needed}
    wrong = [name for name, value in limits.items() if not _is_number(value)]
    if wrong:
        raise ArtifactError(
            f"{where}: certificate has no number as the limit of {', '.join(wrong)}: export the artifact again"
        )
    # NaN neither: nothing could ever be outside such a limit, or inside
    endless = [f"{name} is {value}" for name, value in limits.items() if not 0 <= value < math.inf]
    if endless:
        raise ArtifactError(
            f"{where}: certificate's limit {'; '.join(endless)}, expected a number of 0 or more"
        )
    return certificate


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


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
            logits += [
                session.feed([[text[start + step]] for start in starts]) for step in range(steps)
            ]
            return np.stack(logits, axis=1)  # (rows, steps, vocab_size)

    alone = np.concatenate([run([start]) for start in starts])
    return alone.reshape(-1, alone.shape[-1]), run(starts).reshape(-1, alone.shape[-1])


def _unchanged(stored: Seal, manifest: Manifest) -> Check:
    found = changes(stored, manifest.raw)
    says = "files and gptx.json are as when the artifact was made"
    return Check(
        "unchanged",
        f"not as when the artifact was made: {some(found)}" if found else says,
        not found,
    )


def _check_graphs(report: Report, manifest: Manifest, progress: Callable[[int], object]) -> None:
    """Whether all weights are numbers, and the tables of positions reach as far as gptx.json says."""
    graphs = graphs_of(manifest)
    count, wrong = check_weights(manifest, graphs, progress)
    says = f"{count} stored tensors hold no NaN and no infinity"
    report.checks.append(Check("weights", "; ".join(wrong[:5]) or says, not wrong))
    other, wrong = check_tables(manifest, graphs)
    wrong += rotary_problems(manifest, graphs)
    says = f"no table of positions ends before n_ctx, {manifest.model.n_ctx:,} tokens"
    report.checks.append(Check("context", "; ".join(wrong[:5]) or says, not wrong))
    if other and not wrong:
        report.notes.append(
            f"n_ctx is {manifest.model.n_ctx} in {MANIFEST}, and the graph reaches further: {other[0]}"
        )


def _check_words(model: Model, reference: Reference) -> list[Check]:
    """What the artifact makes of text, against its record; and the tokens of gptx.json against the files that name them."""
    proof = reference.tokens.tolist()
    tokens = model.manifest.tokens
    checks = compare_words(reference.words, model.tokenizer, model.template, tokens, proof)
    generation, config = (
        read_side_file(model.path / name) for name in ("generation_config.json", "config.json")
    )
    wrong = []
    for name, ours in (("bos", tokens.bos), ("eos", list(tokens.eos)), ("pad", tokens.pad)):
        key = f"{name}_token_id"
        said = generation.get(key) if generation.get(key) is not None else config.get(key)
        if isinstance(said, int) and name == "eos":
            said = [said]
        # a value that config.json alone names may have been left out on purpose, and one of neither file is ours
        if (
            said is not None
            and said != ours
            and (generation.get(key) is not None or ours not in (None, []))
        ):
            wrong.append(f"{name} is {ours} in {MANIFEST}, and {said!a:.60} in the files beside it")
    if wrong:
        checks.append(Check("end of text", "; ".join(wrong), False))
    return checks


def _add_figures(
    report: Report,
    manifest: Manifest,
    certificate: dict[str, Any],
    reference: Reference,
    measured: Measured,
) -> None:
    """The rows: each figure of this machine beside the one that the maker's machine had on the same tokens."""
    here = measured.to_dict()
    certified = {
        name: value
        for name, value in (certificate.get("verified") or {}).items()
        if _is_number(value)
    }
    limits = certificate["limits"]
    judged = {
        row.name: row
        for row in judge(measured.figures, measured.consistency, limits, measured.context)
    }
    for name, value in here.items():
        if name in ("positions", "largest_logit"):
            continue
        row, was = judged.get(name), certified.get(name)
        ok = row.ok if row else bool(np.isfinite(value))
        limit = row.limit if row else None
        exact = manifest.precision == "fp32"
        differs = was is not None and _apart(name, was, value, limit, exact=exact)
        if (
            name == "perplexity_reference"
        ):  # of what the artifact carries alone: no machine comes into it
            ok = ok and not differs
        what = MEANING[name].format(greedy=len(reference.greedy_tokens))
        report.rows.append(Row(name, what, was, value, limit, ok, differs))
    _tell_what_is_missing(report, manifest, certificate, reference, measured)
    report.notes.insert(
        0,
        f"compared with what the artifact carries of its fp32 reference: the {reference.top_ids.shape[1]} highest logits"
        f" after each of {here['positions']} tokens of the proof text",
    )
    if certificate.get("context_against"):
        report.notes.append(
            f"the whole context is compared with {certificate['context_against']!s:.200}"
        )


def _apart(name: str, was: float, here: float, limit: float | None, *, exact: bool) -> bool:
    """Whether a figure differs by more than the rounding of another CPU explains. exact: the weights are fp32; where they
    are not, one rounding more or less turns greedy text and single logits, which have no rule here."""
    gap = abs(here - was)
    if name == "perplexity_reference":  # of the stored numbers alone
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


def _tell_what_is_missing(
    report: Report,
    manifest: Manifest,
    certificate: dict[str, Any],
    reference: Reference,
    measured: Measured,
) -> None:
    certified = certificate.get("verified") or {}
    if not certified:
        report.notes.append(
            "an older gptx made the artifact: it does not say what these figures were on the machine that made it"
        )
    elif lacking := sorted(measured.to_dict().keys() - certified.keys()):
        report.notes.append(f"the certificate does not state {', '.join(lacking)}")
    if reference.context is None:
        report.notes.append(
            "not proved, as the artifact carries nothing to prove it with: positions beyond the proof text"
        )
    elif not measured.context:
        report.notes.append("not proved on this device: positions beyond the proof text")
    elif reference.context.last + 1 < manifest.model.n_ctx:
        report.notes.append(f"not proved: positions from {reference.context.last + 1:,} on")
    report.notes.append(
        f"stated by {MANIFEST} alone: where the model comes from, its licence, and how it was made"
    )
    if reference.seal is None:
        report.notes.append(
            "not proved, as the artifact carries no seal: that files and gptx.json are as they were when it was made"
        )
    if reference.words is None:
        report.notes.append(
            "not proved, as the artifact carries nothing to prove it with: tokenizer, end of text, chat template"
        )
    known = set(Figures.__dataclass_fields__)
    if removed := sorted(known - certificate["figures"].keys()):
        report.notes.append(f"the certificate's figures lack {', '.join(removed)}")


def _judge_certificate(report: Report, manifest: Manifest, certificate: dict[str, Any]) -> None:
    """What the certificate says of itself: whether it passed, and by which limits."""
    outside = (
        "; ".join(reason[:200] for reason in certificate.get("outside") or [])
        or "it does not say where"
    )
    if certificate.get("accepted"):
        report.notes.append(
            f"outside its limits when it was made, and accepted as it is: {outside}"
        )
    elif certificate.get("passed") is not True:
        says = f"it says that the artifact was outside its limits when it was made: {outside}"
        report.checks.append(Check("certificate", says, False))
    table, limits = LIMITS[manifest.precision], certificate["limits"]
    other = [
        f"{name} {limits[name]:g} instead of {table.get(name, 0):g}"
        for name in limits
        if limits[name] != table.get(name)
    ]
    if other:
        report.notes.append(
            f"judged by limits of the artifact's own, not by gptx's for {manifest.precision}: {', '.join(other)}"
        )
    report.stated = {
        name: value for name, value in certificate["figures"].items() if value is not None
    }
    if differing := [row.name for row in report.rows if row.differs]:
        report.notes.append(
            f"{', '.join(differing)}: here not what the certificate says, by more than another processor explains; it may"
            " have been edited"
        )
