"""The vocabulary and special tokens in a GGUF file's metadata, by llama.cpp's rules."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from gptx.errors import CheckpointError
from gptx_models.importers.imported import Tell

# tokenizer.ggml.token_type
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_TYPE_NAMES: dict[type, str] = {
    str: "a text",
    int: "a number",
    bool: "true or false",
    list: "a list",
}
_ID_KEYS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "pad": "padding_token_id",
    "eot": "eot_token_id",  # ends a turn of a chat in models whose eos does not
    "eom": "eom_token_id",  # ends a message
    "fim_pad": "fim_pad_token_id",
    "fim_rep": "fim_rep_token_id",
    "fim_sep": "fim_sep_token_id",
}
_SENTENCEPIECE_IDS = {"bos": 1, "eos": 2, "unk": 0}  # llama.cpp's defaults
_NO_ID = 2**32 - 1  # -1 as an unsigned number


class TokenizerMetadata:
    """The metadata of a GGUF file's tokenizer, each value checked for llama.cpp's type.

    `where` names the file in messages.
    """

    def __init__(self, metadata: dict[str, Any], where: str) -> None:
        self._metadata, self.where = metadata, where

    def get(self, name: str, kind: type, default: Any = None) -> Any:
        """The value of tokenizer.ggml.NAME, or of the key `name` itself if it has a dot.

        Raises CheckpointError for a value of another type.
        """
        key = name if "." in name else f"tokenizer.ggml.{name}"
        value = self._metadata.get(key)
        if value is None:
            return default
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise CheckpointError(
                f"{self.where}: {key} is {value!r:.80}, expected {_TYPE_NAMES[kind]}"
            )
        return value

    def get_list(self, name: str, kinds: tuple[type, ...], what: str) -> list[Any]:
        """The list tokenizer.ggml.NAME, empty if there is none.

        Raises CheckpointError for an entry of another type than `kinds`. what: the name of these
        types in the message.
        """
        values = self.get(name, list, [])
        wrong = next((value for value in values if not isinstance(value, kinds)), None)
        if wrong is not None:
            raise CheckpointError(
                f"{self.where}: tokenizer.ggml.{name} holds {wrong!r:.80}, expected {what}"
            )
        return values


@dataclass
class GgufVocabulary:
    """The tokens of a GGUF file by id, with their types (see token_type) and scores."""

    tokens: list[str]
    types: list[int]
    scores: list[float]

    def __len__(self) -> int:
        return len(self.tokens)


def read_vocabulary(metadata: TokenizerMetadata) -> GgufVocabulary:
    """The vocabulary, without the unused tokens at its end. Raises CheckpointError."""
    where = metadata.where
    tokens = metadata.get_list("tokens", (str,), "texts")
    if not tokens:
        raise CheckpointError(
            f"{where}: tokenizer.ggml.tokens is missing: give a tokenizer.json with --tokenizer"
        )
    types = metadata.get_list("token_type", (int,), "numbers") or [NORMAL] * len(tokens)
    scores = metadata.get_list("scores", (int, float), "numbers") or [0.0] * len(tokens)
    if min(len(types), len(scores)) < len(tokens):
        raise CheckpointError(
            f"{where}: tokenizer.ggml has {len(tokens)} tokens, {len(types)} types and"
            f" {len(scores)} scores"
        )
    end = len(tokens)
    while end and types[end - 1] == UNUSED:  # padding of the vocabulary
        end -= 1
    # llama.cpp's name for an empty token
    tokens = [token or f"[EMPTY_{at}]" for at, token in enumerate(tokens[:end])]
    twice = next((token for token, count in Counter(tokens).items() if count > 1), None)
    if twice is not None:
        raise CheckpointError(f"{where}: tokenizer.ggml.tokens has {twice!r:.80} twice")
    return GgufVocabulary(tokens, types[:end], scores[:end])


def read_special_ids(
    metadata: TokenizerMetadata, vocab: GgufVocabulary, tell: Tell
) -> dict[str, int | None]:
    """The ids of the special tokens by name (bos, eos, unk, ...).

    A SentencePiece vocabulary has llama.cpp's defaults. An id beyond the vocabulary is left out,
    and `tell` is called with a line. Raises CheckpointError for a value that is no number.
    """
    ids = {name: _special_id(metadata, key, vocab, tell) for name, key in _ID_KEYS.items()}
    if metadata.get("model", str) == "llama":
        ids |= {
            name: token
            for name, token in _SENTENCEPIECE_IDS.items()
            if ids[name] is None and token < len(vocab)
        }
    return ids


def _special_id(
    metadata: TokenizerMetadata, key: str, vocab: GgufVocabulary, tell: Tell
) -> int | None:
    """A special token's id; None if it is absent, negative or beyond the vocabulary."""
    value = metadata.get(key, int)
    if value is None or 0 <= value < len(vocab):
        return value
    if 0 <= value < _NO_ID:
        tell(
            f"{metadata.where}: tokenizer.ggml.{key} is {value}, beyond the {len(vocab):,} tokens:"
            " left out"
        )
    return None
