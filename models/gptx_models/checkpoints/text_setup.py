"""A model's tokenizer, the tokens that end its texts, and the checkpoint files of both.

Training that continues from a checkpoint ends documents and answers with these tokens, and writes
the files into the new checkpoint. Knows no weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers

from gptx.errors import CheckpointError, UsageError
from gptx.text.chat_template import ChatTemplate
from gptx.text.tokenizer import Tokenizer, special_of, vocabulary_problem
from gptx_models.checkpoints.side_files import SideFiles, read_side_files
from gptx_models.checkpoints.tell import Tell, quiet
from gptx_models.checkpoints.tokenizer_files import read_tokenizer_json
from gptx_models.checkpoints.write_tokenizer import TEMPLATE, new_tokenizer_files

END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class TextSetup:
    """A tokenizer for training, and what a checkpoint states about its texts.

    special: the special tokens' texts by role. ends: the ids of the tokens that end a text; the
    first is the one that training puts behind a document or an answer. files: the tokenizer's
    files, text by name. generation: becomes generation_config.json. where: the checkpoint, for
    messages; None if there is none.
    """

    inner: tokenizers.Tokenizer
    special: dict[str, Any]
    ends: list[int]
    files: dict[str, str] = field(repr=False)
    generation: dict[str, Any]
    where: Path | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer as the runtime uses it."""
        return Tokenizer(self.inner, self.special)

    @property
    def end(self) -> int | None:
        """The id of the token behind a document or an answer; None if there is none."""
        return self.ends[0] if self.ends else None

    @property
    def pad(self) -> int | None:
        """The id of the padding token; None if there is none."""
        return self.generation.get("pad_token_id")

    @property
    def template(self) -> ChatTemplate | None:
        """The chat template; None if there is none."""
        source = self.files.get(TEMPLATE)
        where = self.where / TEMPLATE if self.where else None
        return None if source is None else ChatTemplate(source, self.special, path=where)

    def digest(self) -> str:
        """The SHA-256 of the files and generation settings; equal setups have equal digests."""
        content = json.dumps([self.files, self.generation], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Write the tokenizer's files into a folder."""
        for name, text in self.files.items():
            (folder / name).write_text(text, "utf-8")


def read_text_setup(base: Path, vocab_size: int, *, tell: Tell = quiet) -> TextSetup:
    """The text setup of a checkpoint folder.

    vocab_size: the model's. `tell` is called with a line for each thing that is left out. Raises
    UsageError if the folder has no tokenizer, CheckpointError if its files are damaged.
    """
    side = read_side_files(base, vocab_size, tell=tell)
    if not side.tokenizer:
        raise UsageError(f"{base} has no tokenizer.json, and training on text needs it")
    setup = _from_side_files(side, base)
    if problem := vocabulary_problem(setup.inner, tokenizer_vocab_size=None, vocab_size=vocab_size):
        raise CheckpointError(f"the tokenizer of {base} {problem}")
    return setup


def text_setup_of_tokenizer(file: Path, n_ctx: int) -> TextSetup:
    """The text setup of a tokenizer.json without other files, for a new model.

    n_ctx: the model's context in tokens. Raises UsageError if there is no such file,
    CheckpointError if it is damaged.
    """
    if not file.is_file():
        raise UsageError(
            f"{file} is {'a folder' if file.is_dir() else 'missing'}: a tokenizer.json is expected"
        )
    found = read_tokenizer_json(file)
    inner = _open_tokenizer(found.files)
    if inner.token_to_id(END_OF_TEXT) is not None:
        return new_text_setup(inner, n_ctx)
    return _from_side_files(SideFiles(found.files, found.generation))


def new_text_setup(inner: tokenizers.Tokenizer, n_ctx: int) -> TextSetup:
    """The text setup of a new model, whose context has n_ctx tokens.

    <|endoftext|> is its bos, eos, padding and unknown token, if the tokenizer has that token.
    """
    end = inner.token_to_id(END_OF_TEXT)
    roles = ("bos", "eos", "pad", "unk") if end is not None else ()
    files = new_tokenizer_files(
        inner,
        tokenizer_class="GPT2Tokenizer",
        special=dict.fromkeys(roles, END_OF_TEXT),
        model_max_length=n_ctx,
    )
    generation = {f"{role}_token_id": end for role in roles if role != "unk"}
    return _from_side_files(SideFiles(files, generation))


def _from_side_files(side: SideFiles, where: Path | None = None) -> TextSetup:
    inner = _open_tokenizer(side.tokenizer)
    special = special_of(
        _read_object(side.tokenizer, "tokenizer_config.json"),
        _read_object(side.tokenizer, "special_tokens_map.json"),
    )
    eos = side.generation.get("eos_token_id")
    ends = list(eos) if isinstance(eos, list | tuple) else [] if eos is None else [eos]
    own = inner.token_to_id(special["eos_token"]) if "eos_token" in special else None
    if own in ends:
        # Generation may end at several tokens; documents end with the tokenizer's own eos token.
        ends = [own, *(end for end in ends if end != own)]
    return TextSetup(inner, special, ends, side.tokenizer, side.generation, where)


def _open_tokenizer(files: Mapping[str, str]) -> tokenizers.Tokenizer:
    """The tokenizer of files that were checked when they were read."""
    inner = tokenizers.Tokenizer.from_str(files["tokenizer.json"])
    inner.no_truncation()
    inner.no_padding()
    config = _read_object(files, "tokenizer_config.json")
    # True: "</s>" within a text is encoded as text, not as the special token.
    inner.encode_special_tokens = config.get("split_special_tokens") is True
    return inner


def _read_object(files: Mapping[str, str], name: str) -> dict[str, Any]:
    """The JSON object in a file; {} if there is no such file."""
    return json.loads(files[name]) if name in files else {}
