"""The tokenizer of an artifact: text to token ids and back.

Reads tokenizer.json with the `tokenizers` package. Knows nothing of models.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from gptx.arguments import integer
from gptx.artifact.json_files import read_side_file
from gptx.errors import ArtifactError, PromptError, shown
from gptx.text.token_bytes import inner_encoder, token_bytes

# Hugging Face's names of special tokens.
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
    """Text to token ids and back.

    special: the texts of the special tokens by Hugging Face's names (bos_token, eos_token, ...).
    Under additional_special_tokens there is a list of texts.
    """

    def __init__(self, inner: Any, special: dict[str, Any] | None = None) -> None:
        self._inner = inner
        self.special: dict[str, str] = special or {}

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The token ids of a text.

        add_special_tokens: also add the special tokens that tokenizer.json's post-processor adds,
        for instance a bos token. Raises PromptError if the text cannot be encoded.
        """
        try:
            return self._inner.encode(text, add_special_tokens=add_special_tokens).ids
        except Exception as error:
            # Half a surrogate pair, a value that is not a string, or a word without tokens. For the
            # word, the package raises Exception itself.
            raise PromptError(f"the prompt is not text that can be encoded: {error}") from error

    def continuation(self, prompt: str, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The token ids of `text` where it follows `prompt`, without the ids of the prompt.

        They may differ from encode(text): a SentencePiece tokenizer puts a space in front of a text
        that stands alone. Training learns these ids as the answer, and labels are scored by them.
        """
        ids = self.encode(prompt, add_special_tokens=add_special_tokens)
        whole = self.encode(prompt + text, add_special_tokens=add_special_tokens)
        if whole[: len(ids)] == ids:
            return whole[len(ids) :]
        # One token holds the end of the prompt and the start of the text: encode the text alone.
        return self.encode(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids. skip_special_tokens: without the special tokens among them.

        Raises PromptError if `ids` are not token ids.
        """
        try:
            return self._inner.decode(ids, skip_special_tokens=skip_special_tokens)
        except (TypeError, OverflowError) as error:
            raise PromptError(f"{shown(ids)} cannot be decoded: {error}") from error

    def token(self, token_id: int) -> str | None:
        """The token with this id, spelt as in the vocabulary; None if there is none."""
        number = integer(token_id)
        return self._inner.id_to_token(number) if number in range(1 << 32) else None

    def id(self, token: str) -> int | None:
        """The id of a token; None if the vocabulary lacks it."""
        return self._inner.token_to_id(token) if isinstance(token, str) else None

    def vocabulary(self) -> dict[str, int]:
        """The id of every token, added tokens included."""
        return self._inner.get_vocab(with_added_tokens=True)

    @cached_property
    def vocab_size(self) -> int:
        """The highest token id plus one."""
        return max(self._inner.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @cached_property
    def hidden_ids(self) -> frozenset[int]:
        """The ids of special tokens, which `decode` leaves out."""
        return frozenset(
            i for i, token in self._inner.get_added_tokens_decoder().items() if token.special
        )

    @cached_property
    def texts(self) -> list[str]:
        """For each id, the token's text behind other text: special tokens, and spaces in front.

        A part of a character is U+FFFD. An id without a token has "".
        """
        before = self.encode("a", add_special_tokens=False)
        rows = [before, *([*before, token] for token in range(self.vocab_size))]
        start, *texts = self._inner.decode_batch(rows, skip_special_tokens=False)
        return [text[len(start) :] for text in texts]

    @cached_property
    def byte_ids(self) -> frozenset[int]:
        """The ids of tokens such as <0xE2>, which stand for one byte (byte fallback).

        Empty if the tokenizer's decoder does not join bytes to characters.
        """
        decoder = self._inner.decoder
        if decoder is None or b"ByteFallback" not in decoder.__getstate__():
            return frozenset()
        vocabulary = self._inner.get_vocab(with_added_tokens=True)
        return frozenset(
            i for token, i in vocabulary.items() if re.fullmatch("<0x[0-9A-F]{2}>", token)
        )

    def token_bytes(self) -> list[bytes]:
        """The bytes that each token adds to a text; b"" for an id without a token.

        Raises UsageError if they depend on the tokens beside it (token_bytes.py).
        """
        return token_bytes(self._inner)

    def inner_encoder(self) -> Callable[[str], list[int]]:
        """A function from a text to its token ids where it stands inside another text."""
        return inner_encoder(self._inner)


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
    # True: "</s>" within a text is encoded as text, not as the special token.
    inner.encode_special_tokens = config.get("split_special_tokens") is True
    return Tokenizer(inner, special_of(config, read_side_file(folder / "special_tokens_map.json")))


def vocabulary_problem(
    inner: Any, *, tokenizer_vocab_size: int | None, vocab_size: int
) -> str | None:
    """What is wrong with a tokenizer's ids, as in "is damaged: ..."; None if nothing is.

    inner: a tokenizers.Tokenizer. Each token must have an id of its own, below `vocab_size` (the
    number of ids that the model has). tokenizer_vocab_size: the highest id plus one as gptx.json
    states it; None: not checked. The check is quick if the ids have no gaps, as usual.
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
            f"has token ids up to {highest:,}, and the model's vocabulary has {vocab_size:,} "
            "tokens: this is the tokenizer of another model"
        )
    owners: dict[int, str] = {}
    for token, token_id in vocabulary.items():
        if token_id in owners:
            pair = sorted((owners[token_id], token))
            return (
                f"is damaged: the tokens {pair[0]!r:.80} and {pair[1]!r:.80} "
                f"both have the id {token_id}"
            )
        owners[token_id] = token
    if tokenizer_vocab_size is not None and highest + 1 != tokenizer_vocab_size:
        return (
            f"is of another vocabulary: it knows {highest + 1} ids, "
            f"gptx.json says {tokenizer_vocab_size}"
        )
    return None


def special_tokens(folder: Path) -> dict[str, Any]:
    """The special tokens that the files in a folder name; see special_of."""
    return special_of(
        read_side_file(folder / "tokenizer_config.json"),
        read_side_file(folder / "special_tokens_map.json"),
    )


def special_of(config: Mapping[str, Any], special: Mapping[str, Any]) -> dict[str, Any]:
    """The texts of special tokens by name, by the rules of transformers.

    config: tokenizer_config.json. special: special_tokens_map.json. A config with the field
    added_tokens_decoder is used alone. Without that field, `special` wins over `config`, and
    additional special tokens are taken from both.

    Names are those in SPECIAL and in the config's extra_special_tokens. The list of additional
    special tokens is in additional_special_tokens.
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
    """A special token's text; the file holds a text, or an object with `content` and flags."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) and text else None
