"""Load the text for the comparison of a model with its export, or for calibration.

In: a folder with a tokenizer. Out: token ids in windows that do not overlap. The text is the user's
file or a page that comes with gptx. If there is no tokenizer, or it cannot encode our page, seeded
random token ids take its place.
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

WINDOW = 512  # tokens; a model with a shorter context has windows of that length
MAX_TOKENS = 4096  # of the text; the rest is not used
RANDOM_SEED = 20
GREEDY_PROMPT = 32  # tokens at most


@dataclass(frozen=True)
class EvalText:
    windows: list[list[int]]  # token ids; consecutive, the stride is the window
    description: dict[str, str | int]  # for gptx.json: source, sha256, window, stride, tokens
    text: str | None  # the text of these tokens; None if they are random
    vocab_size: int

    @property
    def greedy_prompt(self) -> list[int]:
        """The text's first tokens: a quarter of a window, at most GREEDY_PROMPT."""
        first = self.windows[0]
        return first[: min(GREEDY_PROMPT, max(1, len(first) // 4))]


def load_eval_text(
    folder: Path,
    *,
    vocab_size: int,
    n_ctx: int,
    text: Path | None = None,
    own: str = "proof",
    most: int = MAX_TOKENS,
) -> EvalText:
    """Encode a text with the tokenizer in `folder` (checkpoint or artifact); cut it into windows.

    text: the user's UTF-8 file. own: our page that is used without one, "proof" or "calibration".
    most: the number of tokens after which the text is cut off.

    Raises UsageError if the user's file is missing, not UTF-8, shorter than 2 tokens, or cannot be
    encoded by this tokenizer; CheckpointError if the tokenizer is damaged or belongs to another
    model.
    """
    source, content, words = read_text(own, text)
    file = folder / "tokenizer.json"
    tokens = None
    if file.exists():
        check_vocabulary(file, vocab_size)
        tokens = _encode(load_tokenizer(file), words)
    if text is not None:
        _check_user_text(own, text, tokens, has_tokenizer=file.exists())
    window = min(n_ctx, WINDOW)
    if tokens and len(tokens) > 1:
        digest = hashlib.sha256(content).hexdigest()
        return _in_windows(tokens[:most], window, source, digest, words, vocab_size)
    reason = "the tokenizer cannot encode the proof text" if file.exists() else "no tokenizer"
    source = f"seeded random token ids ({reason}), seed {RANDOM_SEED}"
    tokens = np.random.default_rng(RANDOM_SEED).integers(0, vocab_size, 2 * window).tolist()
    digest = hashlib.sha256(np.array(tokens, np.int32).tobytes()).hexdigest()
    return _in_windows(tokens[:most], window, source, digest, None, vocab_size)


def _in_windows(
    tokens: list[int], window: int, source: str, digest: str, words: str | None, vocab_size: int
) -> EvalText:
    windows = [tokens[i : i + window] for i in range(0, len(tokens), window)]
    windows = [piece for piece in windows if len(piece) > 1]  # one token predicts nothing
    description: dict[str, str | int] = {
        "source": source,
        "sha256": digest,
        "window": window,
        "stride": window,
        "tokens": sum(map(len, windows)),
    }
    return EvalText(windows, description, words, vocab_size)


def read_text(own: str, text: Path | None) -> tuple[str, bytes, str]:
    """Name, bytes and decoded text of the user's file `text`, or of our page `own`.

    Raises UsageError if the file cannot be read or is not UTF-8.
    """
    if text is None:
        source = f"gptx {own} text"
        content = resources.files("gpt_export").joinpath(f"{own}.txt").read_bytes()
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


def _check_user_text(
    own: str, text: Path, tokens: list[int] | None, *, has_tokenizer: bool
) -> None:
    if not has_tokenizer:
        raise UsageError(f"there is no tokenizer to encode the {own} text {text}: leave it out")
    if tokens is None:
        raise UsageError(
            f"the tokenizer cannot encode the {own} text {text}: give a text in its alphabet"
        )
    if len(tokens) < 2:
        count = f"{len(tokens)} token{'s' * (len(tokens) != 1)}"
        raise UsageError(
            f"the {own} text {text} holds {count}: give one with at least 2, better some thousands"
        )


def _encode(tokenizer: Tokenizer, text: str) -> list[int] | None:
    """Token ids, or None if decoding them loses more than 2% of the text's letters."""
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    decoded = _without_spaces(tokenizer.decode(ids))
    return ids if len(decoded) >= 0.98 * len(_without_spaces(text)) else None


def _without_spaces(text: str) -> str:
    return "".join(text.split())
