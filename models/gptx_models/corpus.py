"""A run's corpus: text files in, tokenizer and memory-mapped tokens out, made once and kept in the run's folder.

Knows nothing of models. What the run was made from stands in run.json, which is written last: a folder without it holds
nothing, and one that names other texts is not mixed with these.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from gptx.errors import UsageError
from gptx_models.checkpoint import write_json
from gptx_models.data import END_OF_TEXT, encode, read_texts, train_tokenizer
from gptx_models.recipe import Recipe
from gptx_models.tensor_files import read_json, sha256

RUN = "run.json"
_TOKENS = ("train.npy", "val.npy")
FILES = (RUN, *_TOKENS, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True)
class Corpus:
    tokenizer: Tokenizer
    train: np.ndarray  # token ids
    val: np.ndarray

    @property
    def vocab_size(self) -> int:
        return max(self.tokenizer.get_vocab().values()) + 1

    @property
    def end(self) -> int | None:
        """The id of <|endoftext|>."""
        return self.tokenizer.token_to_id(END_OF_TEXT)

    @cached_property
    def val_bytes(self) -> int:
        """UTF-8 bytes of the text that `val` writes."""
        return len(self.tokenizer.decode(self.val.tolist(), skip_special_tokens=True).encode())


def prepare(
    files: list[Path], run: Path, recipe: Recipe, *, validation: Path | None = None, tokenizer: Path | None = None
) -> Corpus:
    """The corpus of a run, from its folder where it lies there already. UsageError where that is of other texts.

    validation: a text file; without it the last tenth of the tokens. tokenizer: a tokenizer.json; without it a
    byte-level BPE is trained on `files`.
    """
    origin = _origin(files, recipe, validation, tokenizer)
    if not (run / RUN).exists():
        _make(files, run, recipe, validation, tokenizer)
        write_json(run / f"{RUN}.part", origin)
        os.replace(run / f"{RUN}.part", run / RUN)
    before = read_json(run / RUN)
    if different := [key for key in origin if origin[key] != before.get(key)]:
        raise UsageError(
            f"{run} is of a run with another {', '.join(different)}: choose another --out, or begin again with --force"
        )
    train, val = (np.load(run / name, mmap_mode="r") for name in _TOKENS)
    return Corpus(Tokenizer.from_file(str(run / "tokenizer.json")), train, val)


def _origin(files: list[Path], recipe: Recipe, validation: Path | None, tokenizer: Path | None) -> dict[str, Any]:
    """What decides the tokens and the shape of the model."""
    for file in filter(None, (*files, validation, tokenizer)):
        if not file.is_file():
            raise UsageError(f"{file} is {'a folder' if file.is_dir() else 'missing'}: a file is expected")
    return {
        "texts": [sha256(file) for file in files],
        "validation": sha256(validation) if validation else None,
        "tokenizer": sha256(tokenizer) if tokenizer else None,
        "vocab_size": None if tokenizer else recipe.vocab_size,
        "prose": recipe.prose,
        "model": recipe.model,
    }


def _make(files: list[Path], run: Path, recipe: Recipe, validation: Path | None, given: Path | None) -> None:
    documents = read_texts(files, clean=recipe.prose)
    tokenizer = _read_tokenizer(given) if given else train_tokenizer(documents, recipe.vocab_size)
    tokens = encode(tokenizer, documents)
    if validation is not None:
        val = encode(tokenizer, read_texts([validation], clean=recipe.prose))
    else:
        cut = len(tokens) * 9 // 10
        tokens, val = tokens[:cut], tokens[cut:]
    n_ctx = recipe.config(1).n_ctx
    if min(len(tokens), len(val)) <= n_ctx:
        raise UsageError(
            f"{len(tokens)} tokens to train on and {len(val)} to validate with are too few:"
            f" each must be more than the context of {n_ctx}; give more text, or --set model.n_ctx=N"
        )
    tokenizer.save(str(run / "tokenizer.json"))
    known = tokenizer.token_to_id(END_OF_TEXT) is not None
    roles = ("bos_token", "eos_token", "pad_token", "unk_token")
    special: dict[str, str] = {role: END_OF_TEXT for role in roles} if known else {}
    write_json(
        run / "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer", "model_max_length": n_ctx, **special}
    )
    write_json(run / "special_tokens_map.json", special)
    for name, ids in zip(_TOKENS, (tokens, val)):
        np.save(run / name, ids)


def _read_tokenizer(file: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing narrower
        raise UsageError(f"{file} is no tokenizer.json: {error}") from error
