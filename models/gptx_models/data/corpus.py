"""A run's corpus: texts in, tokenizer and memory-mapped tokens out, made once and kept in the run's folder.

Knows nothing of models. Texts are streamed: they may be larger than memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
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
from gptx_models.checkpoints.text_setup import TextSetup, new_text_setup
from gptx_models.checkpoints.token_ids import IDS, token_ids
from gptx_models.checkpoints.tokenizer_files import load_tokenizer
from gptx_models.data.pretraining import END_OF_TEXT, encode, prose, token_type, train_tokenizer
from gptx_models.data.text_files import documents, list_files
from gptx_models.training.run_folder import GENERATION, TRAIN, VAL


@dataclass(frozen=True)
class Corpus:
    tokenizer: Tokenizer
    train: np.ndarray  # token ids
    val: np.ndarray
    ends: list[int]  # the tokens that end a text; the first stands after each document
    generation: dict[str, Any]  # generation_config.json of the model that the tokenizer is of

    @property
    def vocab_size(self) -> int:
        return max(self.tokenizer.get_vocab().values()) + 1

    @property
    def end(self) -> int | None:
        return self.ends[0] if self.ends else None

    def bytes_per_token(self, n_tokens: int) -> float:
        """UTF-8 bytes of the text that the first `n_tokens` of `val` write, for each of them."""
        text = self.tokenizer.decode(self.val[:n_tokens].tolist(), skip_special_tokens=True)
        return len(text.encode()) / min(n_tokens, len(self.val))


@dataclass(frozen=True)
class Texts:
    """Text files and how they are read."""

    paths: tuple[Path, ...]
    field: str = "text"  # of JSONL
    prose: bool = False

    @cached_property
    def files(self) -> list[Path]:
        return list_files(self.paths)

    @property
    def size(self) -> int:
        return sum(file.stat().st_size for file in self.files)

    def read(self, advance: Advance) -> Iterator[str]:
        """The documents. UsageError names what is wrong with a file."""
        for document in documents(self.paths, field=self.field, read=advance):
            text = prose(document) if self.prose else document.strip("\n")
            if text.strip():
                yield text

    def digest(self) -> str:
        """Of the files' content and of how it is read."""
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
    """Write the tokens and the tokenizer of a run into its folder. UsageError where there is too little text.

    validation: without it the last tenth of the tokens. setup: without them a byte-level BPE of vocab_size is trained on
    `texts`. n_ctx: what both texts must be longer than, in tokens.
    """
    setup = setup or new_text_setup(_trained(texts, vocab_size), n_ctx)
    made, ends = setup.inner, setup.ends
    with stage("Encoding the text", total=texts.size) as advance:
        n_train = _write(run / TRAIN, encode(made, texts.read(advance), ends))
    if not n_train:
        raise UsageError(f"there is no text in {', '.join(map(str, texts.paths))}")
    if validation is not None:
        with stage("Encoding the validation text", total=validation.size) as advance:
            n_val = _write(run / VAL, encode(made, validation.read(advance), ends))
    else:
        n_train, n_val = _split(run, n_train, token_type(made))
    if min(n_train, n_val) <= n_ctx:
        shorter = (
            ", or --set model.n_ctx=N" if setup.where is None else ""
        )  # a start has its own context
        raise UsageError(
            f"{n_train} tokens to train on and {n_val} to validate with are too few:"
            f" each must be more than the context of {n_ctx}; give more text{shorter}"
        )
    setup.write(run)
    write_json(
        run / GENERATION, {**setup.generation, "eos_token_id": ends} if ends else setup.generation
    )


def read(run: Path) -> Corpus:
    """What `make` has written."""
    tokenizer = load_tokenizer(run / "tokenizer.json")
    train, val = (np.memmap(run / name, token_type(tokenizer), mode="r") for name in (TRAIN, VAL))
    end = tokenizer.token_to_id(END_OF_TEXT)
    generation: dict[str, Any] = {} if end is None else dict.fromkeys(IDS, end)
    if (run / GENERATION).exists():  # runs of older versions have none
        generation = read_json(run / GENERATION)
    return Corpus(
        tokenizer,
        train,
        val,
        token_ids(generation.get("eos_token_id"), str(run / GENERATION)),
        generation,
    )


def _trained(texts: Texts, vocab_size: int) -> Tokenizer:
    with stage(f"Training a tokenizer of {vocab_size} tokens", total=texts.size) as advance:
        return train_tokenizer(texts.read(advance), vocab_size)


def _write(file: Path, rows: Iterable[np.ndarray]) -> int:
    """Append the rows to a new file; how many tokens it holds."""
    total = 0
    with open(file, "wb") as out:
        for row in rows:
            out.write(row.tobytes())
            total += len(row)
    return total


def _split(run: Path, total: int, kind: type[np.unsignedinteger]) -> tuple[int, int]:
    """Move the last tenth of the training tokens to the validation's."""
    kept, size = total * 9 // 10, np.dtype(kind).itemsize
    with open(run / TRAIN, "r+b") as file:
        file.seek(kept * size)
        (run / VAL).write_bytes(file.read())
        file.truncate(kept * size)
    return kept, total - kept
