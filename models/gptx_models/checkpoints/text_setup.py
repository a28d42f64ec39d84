"""What a checkpoint makes of text: its tokenizer, the tokens that end a text, and the files that say so.

Training that goes on from a checkpoint ends its documents and answers with them, and hands the files on. Knows no weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers

from gptx.errors import CheckpointError, UsageError
from gptx.text.chat_template import ChatTemplate
from gptx.text.tokenizer import Tokenizer, special_of, vocabulary_problem
from gptx_models.checkpoints.side_files import SideFiles, read_side_files
from gptx_models.checkpoints.tokenizer_files import TEMPLATE, companions, quiet, read_tokenizer_json
from gptx_models.checkpoints.tokenizer_overlay import Tell

END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class TextSetup:
    """`files` are the tokenizer's, by name; `generation` is generation_config.json. ends: the tokens that end a text, the
    one that training puts after a document or an answer first."""

    inner: tokenizers.Tokenizer
    special: dict[str, Any]  # special tokens by name, as texts
    ends: list[int]
    files: dict[str, str] = field(repr=False)
    generation: dict[str, Any]
    where: Path | None = None  # the checkpoint, for messages

    @property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.inner, self.special)

    @property
    def end(self) -> int | None:
        return self.ends[0] if self.ends else None

    @property
    def pad(self) -> int | None:
        return self.generation.get("pad_token_id")

    @property
    def template(self) -> ChatTemplate | None:
        source = self.files.get(TEMPLATE)
        where = self.where / TEMPLATE if self.where else None
        return None if source is None else ChatTemplate(source, self.special, path=where)

    def digest(self) -> str:
        """Of all that decides a text's tokens and what is carried over."""
        return hashlib.sha256(
            json.dumps([self.files, self.generation], sort_keys=True).encode()
        ).hexdigest()

    def write(self, folder: Path) -> None:
        """The tokenizer's files."""
        for name, text in self.files.items():
            (folder / name).write_text(text, "utf-8")


def read_text_setup(base: Path, vocab_size: int, *, tell: Tell = quiet) -> TextSetup:
    """Those of a checkpoint folder, whose model has `vocab_size` ids. Raises UsageError where it has no tokenizer."""
    side = read_side_files(base, vocab_size, tell=tell)
    if not side.tokenizer:
        raise UsageError(f"{base} has no tokenizer.json, and training on text needs it")
    setup = _text_setup(side, base)
    if problem := vocabulary_problem(setup.inner, tokenizer_vocab_size=None, vocab_size=vocab_size):
        raise CheckpointError(f"the tokenizer of {base} {problem}")
    return setup


def text_setup_of_tokenizer(file: Path, n_ctx: int) -> TextSetup:
    """Those of a tokenizer.json that stands alone. n_ctx: of the model that it is for. Raises UsageError."""
    if not file.is_file():
        raise UsageError(
            f"{file} is {'a folder' if file.is_dir() else 'missing'}: a tokenizer.json is expected"
        )
    found = read_tokenizer_json(file)
    inner = inner_tokenizer(found.files)
    if inner.token_to_id(END_OF_TEXT) is not None:
        return new_text_setup(inner, n_ctx)
    return _text_setup(SideFiles(found.files, found.generation))


def new_text_setup(inner: tokenizers.Tokenizer, n_ctx: int) -> TextSetup:
    """Those of a new model: <|endoftext|> begins, ends and pads its texts, where the tokenizer has it."""
    end = inner.token_to_id(END_OF_TEXT)
    roles = ("bos", "eos", "pad", "unk") if end is not None else ()
    files = companions(
        inner,
        tokenizer_class="GPT2Tokenizer",
        special=dict.fromkeys(roles, END_OF_TEXT),
        model_max_length=n_ctx,
    )
    return _text_setup(
        SideFiles(files, {f"{role}_token_id": end for role in roles if role != "unk"})
    )


def inner_tokenizer(files: Mapping[str, str]) -> tokenizers.Tokenizer:
    """The tokenizer of its files, which have been read once already."""
    inner = tokenizers.Tokenizer.from_str(files["tokenizer.json"])
    inner.no_truncation()
    inner.no_padding()
    inner.encode_special_tokens = (
        _object(files, "tokenizer_config.json").get("split_special_tokens") is True
    )
    return inner


def _text_setup(side: SideFiles, where: Path | None = None) -> TextSetup:
    inner = inner_tokenizer(side.tokenizer)
    special = special_of(
        *(
            _object(side.tokenizer, f"{name}.json")
            for name in ("tokenizer_config", "special_tokens_map")
        )
    )
    eos = side.generation.get("eos_token_id")
    ends = list(eos) if isinstance(eos, Sequence) else [] if eos is None else [eos]
    own = inner.token_to_id(special["eos_token"]) if "eos_token" in special else None
    if own in ends:  # a model may end at several tokens, and its documents end with its tokenizer's
        ends = [own, *(end for end in ends if end != own)]
    return TextSetup(inner, special, ends, side.tokenizer, side.generation, where)


def _object(files: Mapping[str, str], name: str) -> dict[str, Any]:
    return json.loads(files[name]) if name in files else {}
