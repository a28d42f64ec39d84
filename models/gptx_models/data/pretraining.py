"""Documents in; a tokenizer, token ids and batches of windows out. Knows no model and no files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from gptx_models.checkpoints.text_setup import END_OF_TEXT
from gptx_models.training.loss import IGNORED

PIECE = 1 << 20  # characters; a longer document is encoded in pieces, to save memory


def prose(text: str) -> str:
    """The text of a book with one line per paragraph.

    Left out are headings (#), ruled lines, lines that begin with "[", and underscores for emphasis.
    """
    lines = [re.sub(r"\s+", " ", line.replace("_", "")).strip() for line in text.splitlines()]
    lines = ["" if re.match(r"#|[-*=\s]+$|\[", line) else line for line in lines]
    if is_wrapped(lines):
        lines = unwrapped(lines)
    return "\n".join(line for line in lines if line)


def is_wrapped(lines: list[str]) -> bool:
    """True for a hard-wrapped text: lines of at most 80 characters that mostly end within a
    sentence."""
    filled = sorted((line for line in lines if line), key=len)
    if len(filled) < 6:
        return False
    ended = sum(1 for line in filled if _ends_sentence(line))
    return len(filled[int(0.95 * len(filled))]) <= 80 and ended < 0.6 * len(filled)


def unwrapped(lines: list[str]) -> list[str]:
    """The paragraphs of hard-wrapped lines.

    A paragraph ends at an empty line, or where a short line ends a sentence.
    """
    width = max(map(len, lines))
    paragraphs, begun = [], ""
    for line in [*lines, ""]:
        begun = f"{begun} {line}".strip()
        if begun and (not line or (_ends_sentence(line) and len(line) < 0.75 * width)):
            paragraphs.append(begun)
            begun = ""
    return paragraphs


def _ends_sentence(line: str) -> bool:
    return re.search(r"[.!?:][\"')\u2019\u201d]*$", line) is not None


def train_tokenizer(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE like GPT-2's.

    It can encode any text, and <|endoftext|> is its only special token.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        (piece for document in documents for piece in _pieces(document)), trainer
    )
    return tokenizer


def encode(
    tokenizer: Tokenizer, documents: Iterable[str], ends: Sequence[int] | None = None
) -> Iterator[np.ndarray]:
    """The token ids of each document: (length,) uint16 or uint32.

    They include the tokens that the tokenizer puts around a text (a bos token, for example), and
    end with the first of `ends`. ends: None stands for <|endoftext|>, if the tokenizer has it.
    """
    if ends is None:
        ends = [end for end in [tokenizer.token_to_id(END_OF_TEXT)] if end is not None]
    before, after = around(tokenizer)
    if ends and ends[0] not in after:
        after = [*after, ends[0]]
    for document in documents:
        pieces = tokenizer.encode_batch(list(_pieces(document)), add_special_tokens=False)
        ids = [token for piece in pieces for token in piece.ids]
        yield np.array([*before, *ids, *after], token_type(tokenizer))


def around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer's post-processor puts before and after a text."""
    alone, whole = (tokenizer.encode("a", add_special_tokens=added).ids for added in (False, True))
    for at in range(len(whole) - len(alone) + 1):
        if whole[at : at + len(alone)] == alone:
            return whole[:at], whole[at + len(alone) :]
    return [], []


def token_type(tokenizer: Tokenizer) -> type[np.unsignedinteger]:
    """The smallest integer type that holds every id."""
    return np.uint16 if tokenizer.get_vocab_size() <= 1 << 16 else np.uint32


def _pieces(document: str) -> Iterator[str]:
    """Cut a document after line ends: no token of a byte-level BPE reaches across such a cut."""
    while len(document) > PIECE:
        cut = document.rfind("\n", 0, PIECE) + 1 or PIECE
        yield document[:cut]
        document = document[cut:]
    yield document


def random_windows(
    tokens: np.ndarray, *, batch_size: int, n_ctx: int, seed: int
) -> Callable[[int], tuple[torch.Tensor, torch.Tensor]]:
    """A function from a step to its batch: (inputs, targets), each (batch_size, n_ctx) int64.

    A row is a window of `tokens` at a random place. The places depend only on the seed and the
    number of the step, so that a resumed run reads the same.
    """

    def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        places = np.random.default_rng((seed, step)).integers(0, len(tokens) - n_ctx, batch_size)
        rows = torch.from_numpy(
            np.stack([tokens[at : at + n_ctx + 1] for at in places]).astype(np.int64)
        )
        return rows[:, :-1], rows[:, 1:]

    return batch


def all_windows(
    tokens: np.ndarray, *, batch_size: int, n_ctx: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches (inputs, targets), each (B, n_ctx) int64, that cover all of `tokens` in order.

    The windows do not overlap. The last batch may have fewer rows. The last window is padded; the
    targets of the padding are IGNORED.
    """
    n_rows = -(-(len(tokens) - 1) // n_ctx)
    for first in range(0, n_rows, batch_size):
        span = tokens[first * n_ctx : (first + batch_size) * n_ctx + 1].astype(np.int64)
        rows = min(batch_size, n_rows - first)
        inputs, targets = np.zeros(rows * n_ctx, np.int64), np.full(rows * n_ctx, IGNORED)
        inputs[: len(span) - 1], targets[: len(span) - 1] = span[:-1], span[1:]
        yield (
            torch.from_numpy(inputs.reshape(rows, n_ctx)),
            torch.from_numpy(targets.reshape(rows, n_ctx)),
        )
