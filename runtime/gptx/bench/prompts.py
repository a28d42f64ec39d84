"""The token ids that all engines get: cut from a text, or from an artifact's proof text."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptx.artifact.manifest import Manifest
from gptx.errors import PromptError, UsageError
from gptx.parity.reference import FILE, Reference
from gptx.text.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Source:
    """Token ids to cut prompts from."""

    ids: list[int]
    name: str  # for people: where the ids come from
    sha256: str  # of the text, or of the ids as little-endian int32
    windows: list[list[int]] | None = None  # the windows of a proof text
    drawn: bool = False  # the ids are random and mean no text


def source(manifest: Manifest, text: Path | None) -> Source:
    """The file `text`, else the proof text that the artifact carries, else random token ids.

    Raises PromptError for a text that cannot be read or is too short, and UsageError if the
    artifact has no tokenizer to read it with.
    """
    if text is not None:
        return _of_text(manifest, text)
    if (manifest.path / FILE).exists():
        reference = Reference.load(manifest.path, manifest.model)
        digest = hashlib.sha256(reference.tokens.astype("<i4").tobytes()).hexdigest()
        windows = [window for _, window in reference.token_windows()]
        return Source(reference.tokens.tolist(), f"the tokens in {FILE}", digest, windows)
    # Speed does not depend on what the tokens are.
    ids = np.random.default_rng(0).integers(manifest.model.vocab_size, size=4096)
    digest = hashlib.sha256(ids.astype("<i4").tobytes()).hexdigest()
    return Source(ids.tolist(), "4,096 token ids drawn by chance", digest, drawn=True)


def _of_text(manifest: Manifest, text: Path) -> Source:
    tokens = manifest.tokens
    tokenizer = load_tokenizer(
        manifest.path, tokenizer_vocab_size=tokens.vocab_size, vocab_size=manifest.model.vocab_size
    )
    if tokenizer is None:
        raise UsageError(
            f"{manifest.path} has no tokenizer, so it cannot read {text}: leave out --text"
        )
    try:
        data = text.read_bytes()
        ids = tokenizer.encode(data.decode(), add_special_tokens=False)
    except OSError as error:
        raise PromptError(f"cannot read {text}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PromptError(f"{text} is not UTF-8 text: byte {error.start} is invalid") from error
    if len(ids) < 3:
        raise PromptError(f"{text} has {len(ids)} tokens, expected at least three")
    return Source(ids, text.name, hashlib.sha256(data).hexdigest())


class Cutter:
    """Cuts prompts out of `ids`, which begin at about `pieces` evenly spaced places.

    Prompts must not begin alike, because some engines keep the cache of a prompt's beginning.
    """

    def __init__(self, ids: list[int], pieces: int) -> None:
        self._ids, self._at, self._step = ids, 0, max(1, len(ids) // pieces)

    def cut(self, length: int) -> list[int]:
        endless = self._ids * (2 + length // len(self._ids))
        start = self._at % len(self._ids)
        self._at += self._step
        return endless[start : start + length]
