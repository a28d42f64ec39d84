"""tokenizer.json, read by the `tokenizers` package: text to token ids and back. Knows nothing of models."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from gptx.artifact.json_files import read_side_file
from gptx.errors import ArtifactError, PromptError

SPECIAL = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
ADDITIONAL = "additional_special_tokens"


class Tokenizer:
    """`special` are the texts of the special tokens by Hugging Face's names: bos_token, eos_token ..., and a list of
    texts as additional_special_tokens."""

    def __init__(self, inner: Any, special: dict[str, Any] | None = None) -> None:
        self._inner = inner
        self.special: dict[str, str] = special or {}

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """`add_special_tokens`: let tokenizer.json's own post-processor add what it adds, a bos token for instance."""
        try:
            return self._inner.encode(text, add_special_tokens=add_special_tokens).ids
        except Exception as error:  # half a surrogate pair, no text at all, or (Exception itself) a word of no token
            raise PromptError(f"the prompt is not text that can be encoded: {error}") from error

    def continuation(self, prompt: str, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The ids that follow the prompt's own where `text` goes on from it: what a model is trained to say, and what a
        label is scored by. Alone, a SentencePiece tokenizer would put one more space before the text."""
        ids = self.encode(prompt, add_special_tokens=add_special_tokens)
        whole = self.encode(prompt + text, add_special_tokens=add_special_tokens)
        if whole[: len(ids)] == ids:
            return whole[len(ids) :]
        return self.encode(
            text, add_special_tokens=False
        )  # else one token would hold the prompt's end and the text

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return self._inner.decode(ids, skip_special_tokens=skip_special_tokens)

    def token(self, token_id: int) -> str | None:
        """A token as the vocabulary writes it; None for an id that the tokenizer does not know."""
        return self._inner.id_to_token(token_id)

    def id(self, token: str) -> int | None:
        return self._inner.token_to_id(token)

    def vocabulary(self) -> dict[str, int]:
        """Every token and its id, added tokens too."""
        return self._inner.get_vocab(with_added_tokens=True)

    @cached_property
    def vocab_size(self) -> int:
        """The highest id and one."""
        return max(self._inner.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @cached_property
    def hidden_ids(self) -> frozenset[int]:
        """Special tokens, which decode leaves out."""
        return frozenset(
            i for i, token in self._inner.get_added_tokens_decoder().items() if token.special
        )

    @cached_property
    def byte_ids(self) -> frozenset[int]:
        """Tokens such as <0xE2> that stand for a byte, where the decoder joins them (byte fallback)."""
        decoder = self._inner.decoder
        if decoder is None or b"ByteFallback" not in decoder.__getstate__():
            return frozenset()
        vocabulary = self._inner.get_vocab(with_added_tokens=True)
        return frozenset(
            i for token, i in vocabulary.items() if re.fullmatch("<0x[0-9A-F]{2}>", token)
        )


def load_tokenizer(
    folder: Path, *, tokenizer_vocab_size: int | None, vocab_size: int
) -> Tokenizer | None:
    """The tokenizer of an artifact, or None if the artifact has none.

    `tokenizer_vocab_size` is the number of ids that the manifest states for the tokenizer;
    `vocab_size` is the number of ids that the model has. Raises ArtifactError if the file is
    damaged or belongs to another vocabulary.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        return None
    import tokenizers

    try:
        inner = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises Exception itself
        raise ArtifactError(
            f"{path} cannot be read as a tokenizer ({error}): copy the artifact again"
        ) from error
    problem = vocabulary_problem(
        inner, tokenizer_vocab_size=tokenizer_vocab_size, vocab_size=vocab_size
    )
    if problem:
        raise ArtifactError(f"{path} {problem}")
    inner.no_truncation()
    inner.no_padding()
    config = read_side_file(folder / "tokenizer_config.json")
    inner.encode_special_tokens = (
        config.get("split_special_tokens") is True
    )  # special tokens in a text are text
    return Tokenizer(inner, special_of(config, read_side_file(folder / "special_tokens_map.json")))


def vocabulary_problem(
    inner: Any, *, tokenizer_vocab_size: int | None, vocab_size: int
) -> str | None:
    """The fault of a tokenizer's ids, worded to follow the file's name; None if there is none.

    Every token must have its own id below `vocab_size`. `tokenizer_vocab_size` is the stated number
    of ids: the highest id plus one. The check is quick for ids without a hole, as most have.
    """
    count = inner.get_vocab_size(with_added_tokens=True)
    if (
        tokenizer_vocab_size is not None
        and count == tokenizer_vocab_size <= vocab_size
        and None not in map(inner.id_to_token, range(tokenizer_vocab_size))
    ):
        return None  # as many tokens as ids, and a token for each id
    vocabulary: dict[str, int] = inner.get_vocab(with_added_tokens=True)
    highest = max(vocabulary.values(), default=-1)
    if highest >= vocab_size:
        return (
            f"has token ids up to {highest:,}, and the model's vocabulary has {vocab_size:,} tokens: this is the"
            " tokenizer of another model"
        )
    owners: dict[int, str] = {}
    for token, token_id in vocabulary.items():
        if token_id in owners:
            pair = sorted((owners[token_id], token))
            return f"is damaged: the tokens {pair[0]!r:.80} and {pair[1]!r:.80} both have the id {token_id}"
        owners[token_id] = token
    if tokenizer_vocab_size is not None and highest + 1 != tokenizer_vocab_size:
        return f"is of another vocabulary: it knows {highest + 1} ids, gptx.json says {tokenizer_vocab_size}"
    return None


def special_tokens(folder: Path) -> dict[str, Any]:
    """The special tokens that the files of a folder name; see special_of."""
    return special_of(
        read_side_file(folder / "tokenizer_config.json"),
        read_side_file(folder / "special_tokens_map.json"),
    )


def special_of(config: Mapping[str, Any], special: Mapping[str, Any]) -> dict[str, Any]:
    """bos_token, eos_token ..., additional_special_tokens (a list) and what extra_special_tokens names, as texts.

    As transformers has it, a tokenizer_config.json (`config`) with added_tokens_decoder stands alone; without it
    special_tokens_map.json (`special`) goes before it, and additional special tokens are taken from both.
    """
    places = [config] if config.get("added_tokens_decoder") is not None else [config, special]
    extra = config.get("extra_special_tokens")
    found: dict[str, Any] = {}
    for values in [*places, extra if isinstance(extra, dict) else {}]:
        names = values if values is extra else SPECIAL
        found |= {name: text for name in names if (text := _text(values.get(name))) is not None}
    lists = [values.get(name) for values in places for name in (ADDITIONAL, "extra_special_tokens")]
    more = [_text(token) for tokens in lists if isinstance(tokens, list) for token in tokens]
    additional = list(dict.fromkeys(text for text in more if text is not None))
    return {**found, **({ADDITIONAL: additional} if additional else {})}


def _text(token: Any) -> str | None:
    """A special token's text, whether the file holds it alone or in an object with its flags."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) and text else None
