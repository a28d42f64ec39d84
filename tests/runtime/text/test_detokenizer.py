"""Streamed text: the pieces hold whole characters, and together they are the whole text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders.tiny_artifact import byte_tokenizer
from builders.tokenizers_of_all_kinds import byte_level, llama, word_piece
from gptx.errors import ArtifactError, PromptError
from gptx.text.detokenizer import Detokenizer
from gptx.text.tokenizer import Tokenizer, load_tokenizer, special_tokens

TEXTS = st.text(
    alphabet=st.one_of(st.characters(codec="utf-8"), st.sampled_from("ab 🌍é中\n\ufffd")),
    max_size=40,
)


def byte_fallback() -> Tokenizer:
    """Like Llama's: ▁ stands for a space, byte tokens for characters not in the vocabulary."""
    from tokenizers import AddedToken, decoders, models, normalizers
    from tokenizers import Tokenizer as Inner

    words = [
        "<unk>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "a",
        "b",
        "▁a",
        "ab",
        "▁the",
    ]
    vocabulary = {word: index for index, word in enumerate(words)}
    merges = [("▁", "a"), ("a", "b")]
    inner = Inner(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    inner.add_special_tokens([AddedToken("</s>", special=True)])
    return Tokenizer(inner)


def words_with_suffix() -> Tokenizer:
    """Like GPT-1's: </w> ends a word, and becomes a space unless it ends the text."""
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models

    words = ["<unk>", "a", "b", "a</w>", "b</w>", "!</w>"]
    inner = Inner(
        models.BPE(
            {word: i for i, word in enumerate(words)},
            [],
            unk_token="<unk>",
            end_of_word_suffix="</w>",
        )
    )
    inner.decoder = decoders.BPEDecoder(suffix="</w>")
    return Tokenizer(inner)


def characters() -> Tokenizer:
    """Like a character model's: one token per character, joined without spaces."""
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models

    inner = Inner(models.WordLevel({c: i for i, c in enumerate("ab 🌍é中\n")}, unk_token="a"))
    inner.decoder = decoders.Fuse()
    return Tokenizer(inner)


TOKENIZERS = {
    "byte-level": Tokenizer(byte_tokenizer()),
    "byte-fallback": byte_fallback(),
    "suffix": words_with_suffix(),
    "characters": characters(),
}


def pieces_of(tokenizer: Tokenizer, ids: list[int], context: list[int] | None = None) -> list[str]:
    detokenizer = Detokenizer(tokenizer, context or [])
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_pieces_together_equal_decoding_all_at_once(kind: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    assert "".join(pieces_of(tokenizer, ids)) == tokenizer.decode(ids)


@settings(deadline=None, max_examples=100)
@given(text=TEXTS)
def test_real_text_comes_in_whole_characters(text: str) -> None:
    """U+FFFD comes out only as often as the text itself has it."""
    for tokenizer in (TOKENIZERS["byte-level"], TOKENIZERS["byte-fallback"]):
        ids = tokenizer.encode(text)
        pieces = pieces_of(tokenizer, ids)
        assert "".join(pieces) == tokenizer.decode(ids)
        assert sum(piece.count("\ufffd") for piece in pieces) == text.count("\ufffd")


def test_an_emoji_comes_when_it_is_whole() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    ids = tokenizer.encode("a🌍b")
    assert len(ids) == 6
    assert pieces_of(tokenizer, ids) == ["a", "", "", "", "🌍", "b", ""]


def test_half_an_emoji_comes_out_at_the_end() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    ids = tokenizer.encode("a🌍")[:-1]
    assert pieces_of(tokenizer, ids) == ["a", "", "", "", "\ufffd"]


def test_special_tokens_are_not_text() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    end = tokenizer.id("<|end|>")
    assert end is not None
    ids = [*tokenizer.encode("ab"), end, *tokenizer.encode("cd")]
    assert "".join(pieces_of(tokenizer, ids)) == "abcd"
    assert tokenizer.decode([end], skip_special_tokens=False) == "<|end|>"


@pytest.mark.parametrize(
    ("kind", "prompt", "goes_on"), [("byte-fallback", [262], [260]), ("suffix", [3], [4])]
)
def test_text_goes_on_from_the_prompt_with_its_space(
    kind: str, prompt: list[int], goes_on: list[int]
) -> None:
    tokenizer = TOKENIZERS[kind]
    assert not tokenizer.decode(goes_on).startswith(" ")
    assert "".join(pieces_of(tokenizer, goes_on, prompt)).startswith(" ")
    assert tokenizer.decode(prompt) + "".join(
        pieces_of(tokenizer, goes_on, prompt)
    ) == tokenizer.decode(prompt + goes_on)


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_context_and_pieces_together_are_the_whole(data: st.DataObject) -> None:
    tokenizer = TOKENIZERS["byte-level"]
    prompt = tokenizer.encode(data.draw(TEXTS))
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=20))
    start = tokenizer.decode(prompt)
    if not start.endswith("\ufffd"):
        assert start + "".join(pieces_of(tokenizer, ids, prompt)) == tokenizer.decode(prompt + ids)


# The tokenizer of an artifact


def test_no_tokenizer(tmp_path: Path) -> None:
    assert load_tokenizer(tmp_path, tokenizer_vocab_size=None, vocab_size=10) is None


def test_a_damaged_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"tokenizer.json cannot be read as a tokenizer"):
        load_tokenizer(tmp_path, tokenizer_vocab_size=5, vocab_size=10)


def test_a_tokenizer_of_another_vocabulary(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    known = tokenizer.get_vocab_size()
    assert load_tokenizer(tmp_path, tokenizer_vocab_size=known, vocab_size=known) is not None
    with pytest.raises(ArtifactError, match=f"it knows {known} ids, gptx.json says {known - 1}"):
        load_tokenizer(tmp_path, tokenizer_vocab_size=known - 1, vocab_size=known)
    with pytest.raises(
        ArtifactError, match=f"ids up to {known - 1}, and the model's vocabulary has 100 tokens"
    ):
        load_tokenizer(tmp_path, tokenizer_vocab_size=None, vocab_size=100)


def test_special_tokens_from_either_file(tmp_path: Path) -> None:
    """special_tokens_map.json wins, unless tokenizer_config.json has added_tokens_decoder."""
    special = {
        "bos_token": {"content": "<s>"},
        "eos_token": "</s>",
        "additional_special_tokens": ["<a>"],
    }
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(special))
    config = {
        "eos_token": "<|im_end|>",
        "pad_token": None,
        "additional_special_tokens": ["<b>", {"content": "<a>"}],
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    found = {"bos_token": "<s>", "eos_token": "</s>", "additional_special_tokens": ["<b>", "<a>"]}
    assert special_tokens(tmp_path) == found
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({**config, "added_tokens_decoder": {}})
    )
    found = {"eos_token": "<|im_end|>", "additional_special_tokens": ["<b>", "<a>"]}
    assert special_tokens(tmp_path) == found


def test_half_a_surrogate_pair_is_no_text() -> None:
    with pytest.raises(PromptError, match="not text"):
        TOKENIZERS["byte-level"].encode("\ud800")


@pytest.mark.parametrize(
    ("inner", "expected"),
    [
        (llama(), {"▁the": " the", "at": "at", "<s>": "<s>", "<0x0A>": "\n", "<0xE2>": "\ufffd"}),
        (word_piece(), {"the": " the", "##at": "at", "[SEP]": " [SEP]"}),
        (byte_level(), {"Ġthe": " the", "Ċ": "\n", "a": "a", "<|endoftext|>": "<|endoftext|>"}),
    ],
    ids=["llama", "word piece", "byte level"],
)
def test_the_text_of_each_token(inner: Any, expected: dict[str, str]) -> None:
    tokenizer = Tokenizer(inner)
    assert len(tokenizer.texts) == tokenizer.vocab_size
    found = {token: tokenizer.texts[inner.token_to_id(token)] for token in expected}
    assert found == expected
