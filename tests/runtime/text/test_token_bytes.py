"""The bytes of tokens are the text that the tokenizer decodes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from builders.tokenizers_of_all_kinds import byte_level, llama, word_piece
from gptx.errors import UsageError
from gptx.model import DEFAULT_MODEL
from gptx.text.token_bytes import inner_encoder, token_bytes


def default_model() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(DEFAULT_MODEL / "tokenizer.json"))


def added_tokens() -> tokenizers.Tokenizer:
    """One that decodes as it is written, and one that the byte-level decoder reads as a byte."""
    inner = byte_level()
    inner.add_tokens([AddedToken("<tool>"), AddedToken("é two")])
    return inner


def unigram() -> tokenizers.Tokenizer:
    """SentencePiece's Unigram without byte tokens, like T5's; the texts stay within its letters."""
    pieces = [
        ("<unk>", 0.0),
        ("▁", -1.0),
        *((letter, -2.0) for letter in "abcdefghi"),
        ("▁a", -1.5),
    ]
    inner = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    return inner


def characters() -> tokenizers.Tokenizer:
    """A token for each character, like nanoGPT's."""
    inner = tokenizers.Tokenizer(
        models.WordLevel({sign: at for at, sign in enumerate("abcdefghi \n")}, unk_token="a")
    )
    inner.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    return inner


def gpt1() -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(models.BPE({"a</w>": 0, "a": 1}, [], end_of_word_suffix="</w>"))
    inner.decoder = decoders.BPEDecoder(suffix="</w>")
    return inner


def no_decoder() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))


# U+2581 is how SentencePiece writes a space
ANY = st.text(st.characters(codec="utf-8", exclude_characters="▁"), min_size=1, max_size=20)
FEW = st.text("abcdefghi ", min_size=1, max_size=20)


@pytest.mark.parametrize(
    ("make", "texts"),
    [
        (byte_level, ANY),
        (default_model, ANY),
        (added_tokens, st.text("é two<tool>", max_size=20)),
        (llama, ANY),
        (unigram, FEW),
        (characters, FEW),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_joined_bytes_are_the_decoded_text(
    make: Callable[[], tokenizers.Tokenizer], texts: st.SearchStrategy[str]
) -> None:
    inner = make()
    known, encode = token_bytes(inner), inner_encoder(inner)

    @given(texts)
    def holds(text: str) -> None:
        ids = inner.encode(text, add_special_tokens=False).ids
        joined = b"".join(known[token] for token in ids).decode(errors="replace")
        decoded = inner.decode(ids, skip_special_tokens=False)
        assert joined in (decoded, " " + decoded)  # llama's decoder strips the first space
        within = b"".join(known[token] for token in encode(text)).decode(errors="replace")
        assert within == text

    holds()


def test_ids_without_a_token_have_no_bytes() -> None:
    inner = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 3}, unk_token="a"))
    inner.decoder = decoders.Fuse()
    assert token_bytes(inner) == [b"a", b"", b"", b"b"]


@pytest.mark.parametrize("make", [word_piece, gpt1, no_decoder])
def test_a_text_that_depends_on_its_neighbours_is_refused(
    make: Callable[[], tokenizers.Tokenizer],
) -> None:
    with pytest.raises(UsageError, match="depends on the tokens beside it"):
        token_bytes(make())
