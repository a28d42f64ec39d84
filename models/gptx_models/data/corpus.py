"""The corpus of a run: texts in, a tokenizer and memory-mapped token ids out.

It is made once and kept in the run's folder. Texts are streamed, so they may be larger than memory.
Knows no models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from gptx.artifact.hashes import sha256
from gptx.errors import UsageError
from gptx.progress import Advance, stage
from gptx_models.checkpoints.checkpoint import write_json
from gptx_models.checkpoints.read_files import read_json
from gptx_models.checkpoints.text_setup import END_OF_TEXT, TextSetup, new_text_setup
from gptx_models.checkpoints.token_ids import IDS, token_ids
from gptx_models.checkpoints.tokenizer_files import load_tokenizer
from gptx_models.data.pretraining import encode, prose, token_type, train_tokenizer
from gptx_models.data.text_files import documents, list_files
from gptx_models.training.run_folder import GENERATION, TRAIN, VAL


@dataclass(frozen=True)
class Corpus:
    """The token ids of a run, with the tokenizer and generation settings for its checkpoint."""

    tokenizer: Tokenizer
    train: np.ndarray  # token ids: (n_train,) uint16 or uint32
    val: np.ndarray  # (n_val,)
    ends: list[int]  # ids that end a text; the first stands after each document
    generation: dict[str, Any]  # generation_config.json that came with the tokenizer

    @property
    def vocab_size(self) -> int:
        return max(self.tokenizer.get_vocab().values()) + 1

    @property
    def end(self) -> int | None:
        """The id that stands after each document; None if the tokenizer has none."""
        return self.ends[0] if self.ends else None

    def generation_config(self) -> dict[str, Any]:
        """The fields of a checkpoint's generation_config.json, without those that are None."""
        ends = self.ends if len(self.ends) > 1 else self.end
        config = {**self.generation, "eos_token_id": ends}
        return {name: value for name, value in config.items() if value is not None}

    def bytes_per_token(self, n_tokens: int) -> float:
        """The mean number of UTF-8 bytes per token, over the first `n_tokens` tokens of `val`."""
        text = self.tokenizer.decode(self.val[:n_tokens].tolist(), skip_special_tokens=True)
        return len(text.encode()) / min(n_tokens, len(self.val))


@dataclass(frozen=True)
class Texts:
    """Text files and how to read them."""

    paths: tuple[Path, ...]
    field: str = "text"  # the field of JSONL records that holds the text
    prose: bool = False  # clean books (pretraining.prose)

    @cached_property
    def files(self) -> list[Path]:
        return list_files(self.paths)

    @property
    def size(self) -> int:
        """Bytes on the disk."""
        return sum(file.stat().st_size for file in self.files)

    def read(self, advance: Advance) -> Iterator[str]:
        """The documents. Raises UsageError, which names the file.

        advance: called with the number of bytes read since its last call.
        """
        for document in documents(self.paths, field=self.field, read=advance):
            text = prose(document) if self.prose else document.strip("\n")
            if text.strip():
                yield text

    def digest(self) -> str:
        """A hash of the files' content and of how it is read."""
        parts = [self.field, str(self.prose), *map(sha256, self.files)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def make(
    texts: Texts,
    run: Path,
    *,
    n_ctx: int,
    vocab_size: int,
    validation: Texts | None,
    setup: TextSetup | None,
) -> None:
    """Write the token ids, the tokenizer and its files into the folder of a run.

    validation: None takes the last tenth of the tokens. setup: None trains a byte-level BPE of
    `vocab_size` tokens on `texts`. n_ctx: the model's context, in tokens. Raises UsageError if the
    training or the validation text has no more than `n_ctx` tokens.
    """
    setup = setup or new_text_setup(_trained_tokenizer(texts, vocab_size), n_ctx)
    n_train = _write_tokens(run / TRAIN, texts, setup, "Encoding the text")
    if not n_train:
        raise UsageError(f"there is no text in {', '.join(map(str, texts.paths))}")
    if validation is not None:
        n_val = _write_tokens(run / VAL, validation, setup, "Encoding the validation text")
    else:
        n_train, n_val = _split(run, n_train, token_type(setup.inner))
    if min(n_train, n_val) <= n_ctx:
        # The context of a checkpoint that is trained further cannot be changed.
        shorter = ", or --set model.n_ctx=N" if setup.where is None else ""
        raise UsageError(
            f"{n_train} tokens to train on and {n_val} to validate with are too few:"
            f" each must be more than the context of {n_ctx}; give more text{shorter}"
        )
    setup.write(run)
    generation = {**setup.generation, "eos_token_id": setup.ends}
    write_json(run / GENERATION, generation if setup.ends else setup.generation)


def read(run: Path) -> Corpus:
    """The corpus that `make` wrote into the folder of a run."""
    tokenizer = load_tokenizer(run / "tokenizer.json")
    train, val = (np.memmap(run / name, token_type(tokenizer), mode="r") for name in (TRAIN, VAL))
    end = tokenizer.token_to_id(END_OF_TEXT)
    generation: dict[str, Any] = {} if end is None else dict.fromkeys(IDS, end)
    if (run / GENERATION).exists():  # a run that an older version of gptx began has none
        generation = read_json(run / GENERATION)
    ends = token_ids(generation.get("eos_token_id"), str(run / GENERATION))
    return Corpus(tokenizer, train, val, ends, generation)


def _trained_tokenizer(texts: Texts, vocab_size: int) -> Tokenizer:
    with stage(f"Training a tokenizer of {vocab_size} tokens", total=texts.size) as advance:
        return train_tokenizer(texts.read(advance), vocab_size)


def _write_tokens(file: Path, texts: Texts, setup: TextSetup, what: str) -> int:
    """Encode the texts into `file`, and return the number of tokens."""
    total = 0
    with stage(what, total=texts.size) as advance, open(file, "wb") as out:
        for ids in encode(setup.inner, texts.read(advance), setup.ends):
            out.write(ids.tobytes())
            total += len(ids)
    return total


def _split(run: Path, total: int, kind: type[np.unsignedinteger]) -> tuple[int, int]:
    """Move the last tenth of the training tokens to the validation file; return both numbers."""
    n_train, size = total * 9 // 10, np.dtype(kind).itemsize
    with open(run / TRAIN, "r+b") as file:
        file.seek(n_train * size)
        (run / VAL).write_bytes(file.read())
        file.truncate(n_train * size)
    return n_train, total - n_train
