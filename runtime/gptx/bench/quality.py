"""Perplexity of engines on a text, and their distance from an fp32 reference.

Protocol: the text is cut into windows of 1,024 tokens (or of the context, or of the proof text)
that do not overlap; the first token of a window is not scored. One engine is in memory at a time:
the reference writes its logits into a temporary file, which the others map. If no fp32 model is
given, the reference is the one that the artifact carries.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptx.artifact.manifest import Manifest, read_manifest
from gptx.bench import children
from gptx.bench.peers import Contender
from gptx.bench.prompts import Source
from gptx.errors import OutputError, UsageError


@dataclass(frozen=True)
class Protocol:
    """The text that is scored."""

    text: str  # its name
    sha256: str
    window: int  # tokens of the longest window
    windows: list[list[int]]

    @property
    def tokens(self) -> int:
        """Tokens in all windows."""
        return sum(map(len, self.windows))

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the protocol without the token ids."""
        return {
            "text": self.text,
            "sha256": self.sha256,
            "window": self.window,
            "stride": self.window,
            "tokens": self.tokens,
            "scored": self.tokens - len(self.windows),
        }


@dataclass(frozen=True)
class QualityPlan:
    """The text, and the reference to compare with."""

    protocol: Protocol
    reference: Contender | None  # None: the reference that `artifact` carries
    artifact: Manifest


@dataclass(frozen=True)
class Quality:
    """The figures of all engines."""

    protocol: Protocol
    reference: str  # for people: what was compared with
    models: list[dict[str, Any]]  # "engine", and the figures of gptx.bench.logits.score

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "protocol": self.protocol.to_dict(),
            "reference": self.reference,
            "models": self.models,
        }


def plan_quality(
    manifest: Manifest,
    engines: Sequence[Contender],
    source: Source,
    reference: Path | None,
    *,
    window: int,
    tokens: int | None,
) -> QualityPlan:
    """Choose the text and the reference.

    reference: an fp32 artifact that the user named. window: tokens that are scored at once.
    tokens: at most so many of the text are scored; None: all. Raises UsageError if there is no
    text, or no fp32 model for it.
    """
    if source.drawn:
        raise UsageError(f"{manifest.path} carries no text of its own: give one with --text")
    found = reference_of(engines, reference)
    if found is None and (source.windows is None or tokens is not None):
        given = "--text" if source.windows is None else "--tokens"
        raise UsageError(
            f"{given} needs a model in fp32 to compare with: --reference ARTIFACT or a"
            " transformers: peer"
        )
    text = protocol(source, min(window, manifest.model.n_ctx), tokens)
    return QualityPlan(text, found, manifest)


def protocol(source: Source, window: int, tokens: int | None) -> Protocol:
    """Cut the first `tokens` tokens of `source` into its own windows, or windows of `window`."""
    pieces = source.windows or [
        source.ids[at : at + window] for at in range(0, len(source.ids), window)
    ]
    if tokens is not None:
        starts = [sum(map(len, pieces[:i])) for i in range(len(pieces))]
        pieces = [piece[: max(tokens - start, 0)] for start, piece in zip(starts, pieces)]
    return Protocol(
        source.name,
        source.sha256,
        max(map(len, pieces)),
        [piece for piece in pieces if len(piece) > 1],
    )


def reference_of(engines: Sequence[Contender], given: Path | None) -> Contender | None:
    """The fp32 reference: the artifact `given`, else a PyTorch peer, else an fp32 artifact.

    Returns None if there is none of them. Raises UsageError if `given` is not fp32.
    """
    if given is not None:
        found = Contender(f"gptx:{given.absolute().name}", "gptx", given)
        if not _is_fp32(found):
            raise UsageError(
                f"{given} is not fp32, which quality is measured against: give another --reference"
            )
        same = (
            one for one in engines if one.engine == "gptx" and one.path.resolve() == given.resolve()
        )
        return next(same, found)
    of_torch = [one for one in engines if one.engine in ("transformers", "torch")]
    return next((one for one in (*of_torch, *engines) if _is_fp32(one)), None)


def _is_fp32(one: Contender) -> bool:
    if one.engine == "gptx":
        return read_manifest(one.path).precision == "fp32"
    return one.engine in ("transformers", "torch") and one.variant in (None, "float32")


def measure(
    engines: Sequence[Contender],
    plan: QualityPlan,
    threads: int,
    announce: Callable[[str], None],
    *,
    device: str = "cpu",
) -> Quality:
    """Score every engine that gives logits.

    `announce` is called with what is measured next. A reference that is not one of the engines
    computes on the CPU. Raises GptxError if an engine fails, OutputError if the disk is too small.
    """
    text, reference = plan.protocol, plan.reference
    able = [one for one in engines if one.does.logits is not None]

    def score(one: Contender, **against: str) -> dict[str, Any]:
        announce(f"quality: {one.label}")
        answer = children.ask(
            one,
            threads=threads,
            device=device if one in engines else "cpu",
            context=text.window + 1,
            quality={"windows": text.windows, **against},
        )
        return {"engine": one.label, **answer}

    if reference is None:
        artifact = plan.artifact.path.absolute()
        name = (
            f"the 64 highest logits of each position that {artifact.name} carries of its fp32"
            " reference"
        )
        return Quality(text, name, [score(one, carried=str(artifact)) for one in able])
    with tempfile.TemporaryDirectory(prefix="gptx-bench-") as folder:
        _check_space(Path(folder), 4 * text.tokens * plan.artifact.model.vocab_size)
        file = str(Path(folder) / "logits")
        own = score(reference, write=file)
        others = [score(one, file=file) for one in able if one != reference]
    return Quality(text, reference.label, [own, *others])


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(
            f"the reference's logits take {needed / 1e9:.1f} GB in {folder.parent}, and"
            f" {free / 1e9:.1f} GB are free: give fewer --tokens, or set TMPDIR to another disk"
        )
