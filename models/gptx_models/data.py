"""Text files in; a tokenizer, token ids and batches of them out. What learns from them, it does not know."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from gptx.errors import UsageError
from gptx.progress import stage

END_OF_TEXT = "<|endoftext|>"


def read_texts(files: list[Path], *, clean: bool = False) -> list[str]:
    """The documents of UTF-8 files, divided by <|endoftext|>. UsageError names a file that cannot be read.

    clean: as `prose` leaves them.
    """
    documents: list[str] = []
    for file in files:
        try:
            text = file.read_text("utf-8")
        except OSError as error:
            raise UsageError(f"cannot read {file}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            found = error.object[error.start]
            raise UsageError(f"{file} is not UTF-8 text: byte {error.start} is {found:#x}") from error
        documents += [prose(part) if clean else part.strip("\n") for part in text.split(END_OF_TEXT)]
    documents = [document for document in documents if document.strip()]
    if not documents:
        raise UsageError(f"there is no text in {', '.join(map(str, files))}")
    return documents


def prose(text: str) -> str:
    """A book as paragraphs, a line each: headings, rules, [notes] and the underscores of emphasis are left out."""
    lines = [re.sub(r"\s+", " ", line.replace("_", "")).strip() for line in text.splitlines()]
    lines = ["" if re.match(r"#|[-*=\s]+$|\[", line) else line for line in lines]
    if is_wrapped(lines):
        lines = unwrapped(lines)
    return "\n".join(line for line in lines if line)


def is_wrapped(lines: list[str]) -> bool:
    """Are these lines of a fixed width, most of which break off inside a sentence?"""
    filled = sorted((line for line in lines if line), key=len)
    if len(filled) < 6:
        return False
    ended = sum(1 for line in filled if _ends_sentence(line))
    return len(filled[int(0.95 * len(filled))]) <= 80 and ended < 0.6 * len(filled)


def unwrapped(lines: list[str]) -> list[str]:
    """Paragraphs of hard-wrapped lines: one ends at an empty line, or where a short line ends a sentence."""
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


def train_tokenizer(documents: list[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE as GPT-2 has it: any text can be written, and <|endoftext|> is its only special token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    with stage(f"Training a tokenizer of {vocab_size} tokens"):
        tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, documents: list[str]) -> np.ndarray:
    """All documents as one row of uint16 or uint32 ids, <|endoftext|> after each where the tokenizer has it."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    kind = np.uint16 if tokenizer.get_vocab_size() <= 1 << 16 else np.uint32
    with stage("Encoding the text"):
        rows = [encoding.ids for encoding in tokenizer.encode_batch(documents, add_special_tokens=False)]
    return np.concatenate([np.array([*row, end] if end is not None else row, kind) for row in rows])


def batches(
    tokens: np.ndarray, *, batch_size: int, n_ctx: int, seed: int, start: int = 0
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (inputs, targets), each (batch_size, n_ctx) int64, from random places; step `start` on.

    A step's places depend on the seed and its number alone, so a resumed run reads what it would have read.
    """
    step = start
    while True:
        rng = np.random.default_rng((seed, step))
        places = rng.integers(0, len(tokens) - n_ctx, batch_size)
        rows = torch.from_numpy(np.stack([tokens[at : at + n_ctx + 1] for at in places]).astype(np.int64))
        yield rows[:, :-1], rows[:, 1:]
        step += 1
