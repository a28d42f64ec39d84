"""Perplexity of engines on a text, and how far each is from an fp32 reference: KL, same top-1, differences of logits.

Protocol: token ids in windows of 1,024 (or the context, or those of the certificate); stride = window; the first token
of a window is not scored. One engine is in memory at a time: the reference writes its logits into a temporary file,
which the others map. Without an fp32 model the reference is what the artifact carries of its own.
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
    text: str
    sha256: str
    window: int
    windows: list[list[int]]

    @property
    def tokens(self) -> int:
        return sum(map(len, self.windows))

    def to_dict(self) -> dict[str, Any]:
        return {
            "text": self.text,
            "sha256": self.sha256,
            "window": self.window,
            "stride": self.window,
            "tokens": self.tokens,
            "scored": self.tokens - len(self.windows),
        }


@dataclass(frozen=True)
class Compared:
    """What is to be compared with what, checked before anything is measured."""

    protocol: Protocol
    reference: Contender | None  # None: what `artifact` carries
    artifact: Manifest


@dataclass(frozen=True)
class Quality:
    protocol: Protocol
    reference: str
    models: list[dict[str, Any]]  # "engine" and the figures of gptx.bench.logits

    def to_dict(self) -> dict[str, Any]:
        return {
            "protocol": self.protocol.to_dict(),
            "reference": self.reference,
            "models": self.models,
        }


def compared(
    manifest: Manifest,
    engines: Sequence[Contender],
    source: Source,
    reference: Path | None,
    *,
    window: int,
    tokens: int | None,
) -> Compared:
    """Raises UsageError where there is no text or nothing that is fp32."""
    if source.drawn:
        raise UsageError(f"{manifest.path} carries no text of its own: give one with --text")
    found = reference_of(engines, reference)
    if found is None and (source.windows is None or tokens is not None):
        given = "--text" if source.windows is None else "--tokens"
        raise UsageError(
            f"{given} needs a model in fp32 to compare with: --reference ARTIFACT or a transformers: peer"
        )
    return Compared(protocol(source, min(window, manifest.model.n_ctx), tokens), found, manifest)


def protocol(source: Source, window: int, tokens: int | None) -> Protocol:
    """The windows that `source` has, else windows of `window` tokens; of them the first `tokens` tokens."""
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
    """The artifact given, else the first that is fp32, PyTorch's before an artifact; None where there is none."""
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
    compared: Compared,
    threads: int,
    told: Callable[[str], None],
    *,
    device: str = "cpu",
) -> Quality:
    """Every engine that gives logits; `told` is called with what is about to be measured. A reference that is not one of
    the engines computes on the CPU. Raises GptxError."""
    text, reference = compared.protocol, compared.reference
    able = [one for one in engines if one.does.logits is not None]

    def judged(one: Contender, **against: str) -> dict[str, Any]:
        told(f"quality: {one.label}")
        asked = {"windows": text.windows, **against}
        where = device if one in engines else "cpu"
        answer = children.ask(
            one, threads=threads, device=where, context=text.window + 1, quality=asked
        )
        return {"engine": one.label, **answer}

    if reference is None:
        folder = compared.artifact.path.absolute()
        name = f"the 64 highest logits of each position that {folder.name} carries of its fp32 reference"
        return Quality(text, name, [judged(one, carried=str(folder)) for one in able])
    with tempfile.TemporaryDirectory(prefix="gptx-bench-") as folder:
        _check_space(Path(folder), 4 * text.tokens * compared.artifact.model.vocab_size)
        file = str(Path(folder) / "logits")
        own = judged(reference, write=file)
        others = [judged(one, file=file) for one in able if one != reference]
    return Quality(text, reference.label, [own, *others])


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(
            f"the reference's logits take {needed / 1e9:.1f} GB in {folder.parent}, and {free / 1e9:.1f} GB are free: "
            "give fewer --tokens, or set TMPDIR to another disk"
        )
