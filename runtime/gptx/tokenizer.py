"""tokenizer.json, read by the `tokenizers` package: text to token ids and back. Knows nothing of models."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from gptx import json_files
from gptx.errors import ArtifactError, PromptError

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokenizer:
    """`special` are the texts of the special tokens by Hugging Face's names (bos_token, eos_token ...)."""

    def __init__(self, inner: Any, special: dict[str, str] | None = None) -> None:
        self._inner = inner
        self.special: dict[str, str] = special or {}

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """`add_special_tokens`: let tokenizer.json's own post-processor add what it adds, a bos token for instance."""
        try:
            return self._inner.encode(text, add_special_tokens=add_special_tokens).ids
        except (UnicodeError, TypeError) as error:  # half a surrogate pair, or no text at all
            raise PromptError(f"the prompt is not text that can be encoded: {error}") from error

    def continuation(self, prompt: str, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The ids that follow the prompt's own where `text` goes on from it: what a model is taught to say, and what a
        label is scored by. Alone, a SentencePiece tokenizer would put one more space before the text."""
        ids = self.encode(prompt, add_special_tokens=add_special_tokens)
        whole = self.encode(prompt + text, add_special_tokens=add_special_tokens)
        if whole[: len(ids)] == ids:
            return whole[len(ids) :]
        return self.encode(text, add_special_tokens=False)  # else one token would hold the prompt's end and the text

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return self._inner.decode(ids, skip_special_tokens=skip_special_tokens)

    def token(self, token_id: int) -> str | None:
        """A token as the vocabulary writes it; None for an id that the tokenizer does not know."""
        return self._inner.id_to_token(token_id)

    def id(self, token: str) -> int | None:
        return self._inner.token_to_id(token)

    @cached_property
    def vocab_size(self) -> int:
        """The highest id and one."""
        return max(self._inner.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @cached_property
    def hidden_ids(self) -> frozenset[int]:
        """Special tokens, which decode leaves out."""
        return frozenset(i for i, token in self._inner.get_added_tokens_decoder().items() if token.special)

    @cached_property
    def byte_ids(self) -> frozenset[int]:
        """Tokens such as <0xE2> that stand for a byte, where the decoder joins them (byte fallback)."""
        if "ByteFallback" not in json.dumps(json.loads(self._inner.to_str())["decoder"]):
            return frozenset()
        vocabulary = self._inner.get_vocab(with_added_tokens=True)
        return frozenset(i for token, i in vocabulary.items() if re.fullmatch("<0x[0-9A-F]{2}>", token))

    def fits(self, vocab_size: int) -> bool:
        """Whether the vocabulary is of this size, quickly: most have no holes, and reading them all takes a while."""
        return self._inner.get_vocab_size(with_added_tokens=True) == vocab_size or self.vocab_size == vocab_size


def load_tokenizer(folder: Path, *, known: int | None, vocab_size: int) -> Tokenizer | None:
    """The tokenizer of an artifact, None where it has none. `known`: ids that the manifest says it knows; `vocab_size`:
    ids that the model has. Raises ArtifactError for a file that is damaged or belongs to another vocabulary."""
    path = folder / "tokenizer.json"
    if not path.exists():
        return None
    import tokenizers

    try:
        inner = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises Exception itself
        raise ArtifactError(f"{path} cannot be read as a tokenizer ({error}): copy the artifact again") from error
    inner.no_truncation()
    inner.no_padding()
    tokenizer = Tokenizer(inner, special_tokens(folder))
    if known is not None and not tokenizer.fits(known):
        raise ArtifactError(
            f"{path} is of another vocabulary: it knows {tokenizer.vocab_size} ids, gptx.json says {known}"
        )
    if (known or tokenizer.vocab_size) > vocab_size:
        raise ArtifactError(
            f"{path} is of another vocabulary: {tokenizer.vocab_size} ids, and the model has {vocab_size}"
        )
    return tokenizer


def special_tokens(folder: Path) -> dict[str, str]:
    """bos_token, eos_token ... as tokenizer_config.json, or else special_tokens_map.json, names them."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        values = read_json(folder / name)
        for key in SPECIAL:
            value = values.get(key)
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                found[key] = text
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, {} where there is no such file. Raises ArtifactError."""
    return json_files.read_json(path, ArtifactError, optional=True, advice="copy the artifact again")
