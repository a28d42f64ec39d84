"""The proof text: what a model and its export are both run on.

The user's file, or a page of our own; where the tokenizer cannot write it, or there is none, seeded random token ids.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from gptx.errors import UsageError
from gptx_models.checkpoints.tokenizer_files import check_vocabulary, load_tokenizer

WINDOW = 512  # tokens; a shorter context takes its own length
MOST = 4096  # tokens of the text that are used
RANDOM_SEED = 20


@dataclass(frozen=True)
class Proof:
    windows: list[list[int]]  # one after the other, none overlapping: stride = window
    description: dict[str, str | int]  # for the certificate: source, sha256, window, stride, tokens
    text: str | None  # what the tokens were encoded from; None where they are random
    vocab_size: int

    @property
    def greedy_prompt(self) -> list[int]:
        """The beginning, a quarter of a window or 32 tokens."""
        first = self.windows[0]
        return first[: min(32, max(1, len(first) // 4))]


def proof(
    folder: Path,
    *,
    vocab_size: int,
    n_ctx: int,
    text: Path | None = None,
    own: str = "proof",
    most: int = MOST,
) -> Proof:
    """Cut the proof text into windows for the tokenizer of `folder` (a checkpoint or an artifact).

    text: the user's own. own: which of our pages takes its place, "proof" or "calibration"; most: tokens of it that are
    used.

    UsageError when the user's own text is not there, not UTF-8, too short, or nothing that this tokenizer can write;
    CheckpointError when the tokenizer is damaged or another model's.
    """
    source, content, read = read_text(own, text)
    words: str | None = read

    file = folder / "tokenizer.json"
    tokens = None
    if file.exists():
        check_vocabulary(file, vocab_size)
        tokens = _encode(load_tokenizer(file), read)
    digest = hashlib.sha256(content).hexdigest()
    if text is not None:
        _check_own_text(own, text, tokens, has_tokenizer=file.exists())
    if not tokens or len(tokens) < 2:
        why = "no tokenizer" if not file.exists() else "the tokenizer cannot write the proof text"
        source, words = f"seeded random token ids ({why}), seed {RANDOM_SEED}", None
        tokens = (
            np.random.default_rng(RANDOM_SEED)
            .integers(0, vocab_size, 2 * min(n_ctx, WINDOW))
            .tolist()
        )
        digest = hashlib.sha256(np.array(tokens, np.int32).tobytes()).hexdigest()
    window = min(n_ctx, WINDOW)
    tokens = tokens[:most]
    windows = [tokens[i : i + window] for i in range(0, len(tokens), window)]
    windows = [piece for piece in windows if len(piece) > 1]
    description: dict[str, str | int] = {
        "source": source,
        "sha256": digest,
        "window": window,
        "stride": window,
        "tokens": sum(map(len, windows)),
    }
    return Proof(windows, description, words, vocab_size)


def read_text(own: str, text: Path | None) -> tuple[str, bytes, str]:
    """The name, the bytes and the words of the user's `text`, or of our own page. Raises UsageError."""
    if text is None:
        source, content = (
            f"gptx {own} text",
            resources.files("gpt_export").joinpath(f"{own}.txt").read_bytes(),
        )
    else:
        try:
            source, content = text.name, text.read_bytes()
        except OSError as error:
            raise UsageError(f"cannot read the {own} text {text}: {error.strerror}") from error
    try:
        return source, content, content.decode()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"the {own} text {source} is not UTF-8: byte {error.start} is {content[error.start]:#x}"
        ) from error


def _check_own_text(own: str, text: Path, tokens: list[int] | None, *, has_tokenizer: bool) -> None:
    if not has_tokenizer:
        raise UsageError(f"there is no tokenizer to read the {own} text {text} with: leave it out")
    if tokens is None:
        raise UsageError(
            f"the tokenizer cannot write the {own} text {text}: give a text in its alphabet"
        )
    if len(tokens) < 2:
        count = f"{len(tokens)} token{'s' * (len(tokens) != 1)}"
        raise UsageError(
            f"the {own} text {text} holds {count}: give one of 2 at least, better some thousands"
        )


def _encode(tokenizer: Tokenizer, text: str) -> list[int] | None:
    """Token ids, or None when too little of the text comes back from them."""
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    back = _letters(tokenizer.decode(ids))
    return ids if len(back) >= 0.98 * len(_letters(text)) else None


def _letters(text: str) -> str:
    return "".join(text.split())
