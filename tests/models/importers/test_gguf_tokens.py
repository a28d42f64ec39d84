"""tokenizer.ggml.* of GGUF: end tokens by llama.cpp's rule, and values of wrong types.

The expected ends are special_eog_ids of llama.cpp's src/llama-vocab.cpp, worked out by hand.
"""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer

from gptx.errors import CheckpointError
from gptx_models.checkpoints.tokenizer_files import TokenizerFiles
from gptx_models.importers.gguf_tokenizer import read_generation, read_tokenizer

NORMAL, CONTROL = 1, 3


def byte_level(*special: str, control: bool = True, **metadata: Any) -> dict[str, Any]:
    """Metadata of a byte-level vocabulary: a, b, aa, then `special` from id 3 on."""
    kinds = [NORMAL] * 3 + [CONTROL if control else NORMAL] * len(special)
    fields = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": ["a", "b", "aa", *special],
        "token_type": kinds,
        "merges": ["a a"],
    }
    return {f"tokenizer.ggml.{name}": value for name, value in {**fields, **metadata}.items()}


def pieces(*special: str, **metadata: Any) -> dict[str, Any]:
    """Metadata of a SentencePiece vocabulary: <unk>, <s>, </s>, x, then `special` from id 4 on."""
    tokens = ["<unk>", "<s>", "</s>", "x", *special]
    fields = {"model": "llama", "tokens": tokens, "token_type": [2, 3, 3, 1, *[3] * len(special)]}
    fields["scores"] = [0.0] * len(tokens)
    return {f"tokenizer.ggml.{name}": value for name, value in {**fields, **metadata}.items()}


def read(metadata: dict[str, Any]) -> TokenizerFiles:
    return read_tokenizer(metadata, "tiny.gguf", tell=lambda line: None)


ENDS = {
    "eos alone": (byte_level("x", eos_token_id=3), 3),
    "none": (byte_level("x"), None),
    "eot and eom": (
        byte_level("x", "y", "z", eos_token_id=5, eot_token_id=3, eom_token_id=4),
        [5, 3, 4],
    ),
    "one id for all": (byte_level("x", eos_token_id=3, eot_token_id=3, eom_token_id=3), 3),
    "a turn's end by its name": (byte_level("<|endoftext|>", "<|im_end|>", eos_token_id=3), [3, 4]),
    "names, and an eos of another": (
        byte_level("<|eot_id|>", "<|eom_id|>", "x", eos_token_id=5),
        [5, 3, 4],
    ),
    "a name that is typed as a word": (
        byte_level("<end_of_turn>", "x", control=False, eos_token_id=4),
        [4, 3],
    ),
    "the marks of code models": (
        byte_level("x", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", eos_token_id=3),
        [3, 4, 5, 6],
    ),
    "a mark's id goes before its name": (
        byte_level("x", "<PAD>", "z", eos_token_id=3, fim_pad_token_id=5),
        [3, 5],
    ),
    "an end of a message, of gpt-oss": (
        byte_level("<|return|>", "<|call|>", "<|end|>", eos_token_id=3),
        [3, 4],
    ),
    "an end of a message, of both": (byte_level("<|return|>", "<|calls|>", "<|end|>"), [3, 4]),
    "an end of a message, of Solar": (byte_level("<|flush|>", "<|calls|>", "<|end|>"), [3, 4]),
    "an end of a turn, of Phi": (byte_level("<|endoftext|>", "<|end|>", eos_token_id=3), [3, 4]),
    "every name that ends a text by itself": (
        byte_level(
            "<|eot_id|>",
            "<|im_end|>",
            "<|return|>",
            "<|flush|>",
            "<end_of_turn>",
            "<|endoftext|>",
            "<|eom_id|>",
            "<EOT>",
            "_<EOT>",
            "[EOT]",
            "[EOS]",
            "<|end_of_text|>",
            "<end_of_utterance>",
            "<eos>",
            "<turn|>",
            "<|tool_response>",
            "<｜end▁of▁sentence｜>",
            "[e~[",
        ),
        list(range(3, 21)),
    ),
    "of a llama, not named": (pieces(), 2),
    "of a llama, beyond": (pieces(eos_token_id=2**32 - 1, bos_token_id=99), 2),
    "of a llama, another": (pieces("<|im_end|>", eos_token_id=4), [4, 2]),
    "of Gemma 4": (pieces("<eos>", "<|tool_response>", eos_token_id=4), [4, 5]),
}


@pytest.mark.parametrize("name", ENDS)
def test_what_ends_a_text(name: str) -> None:
    metadata, expected = ENDS[name]
    found = read(metadata)
    assert found.generation.get("eos_token_id") == expected
    assert read_generation(metadata, "tiny.gguf", tell=lambda line: None) == found.generation
    tokenizer = Tokenizer.from_str(found.files["tokenizer.json"])
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    ends = expected if isinstance(expected, list) else [expected]
    tokens = metadata["tokenizer.ggml.tokens"]
    assert {end for end in ends if end is not None and tokens[end].startswith("<")} <= special


def test_the_ids_that_a_llama_has_where_none_are_named() -> None:
    found = read(pieces())
    assert found.generation == {"bos_token_id": 1, "eos_token_id": 2}
    assert Tokenizer.from_str(found.files["tokenizer.json"]).encode("x").ids[0] == 1


def test_tokens_that_are_never_picked() -> None:
    """llama.cpp gives the tokens in tokenizer.ggml.suppress_tokens a logit of -inf.

    Ids beyond the vocabulary are ignored.
    """
    assert read(pieces(suppress_tokens=[3, 99, -1])).generation["suppress_tokens"] == [3]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "an end that is a list": (
        byte_level(eos_token_id=[0]),
        r"eos_token_id is \[0\], expected a number",
    ),
    "an end that is a text": (
        byte_level(eos_token_id="0"),
        "eos_token_id is '0', expected a number",
    ),
    "an end that is true": (
        byte_level(eos_token_id=True),
        "eos_token_id is True, expected a number",
    ),
    "an end that is a fraction": (
        byte_level(eos_token_id=1.0),
        "eos_token_id is 1.0, expected a number",
    ),
    "a padding that is a list": (
        byte_level(padding_token_id=[]),
        r"padding_token_id is \[\], expected a number",
    ),
    "a beginning that is added by a word": (
        byte_level(add_bos_token="yes"),
        "add_bos_token is 'yes', expected true",
    ),
    "a template that is a list": (
        {**byte_level(), "tokenizer.chat_template": ["a"]},
        r"chat_template is \['a'\], expected a text",
    ),
    "a kind that is a list": (byte_level(model=["gpt2"]), "model is .*, expected a text"),
    "a cut that is a number": (byte_level(pre=3), "pre is 3, expected a text"),
    "tokens that are one text": (byte_level(tokens="abc"), "tokens is 'abc', expected a list"),
    "tokens that are numbers": (
        byte_level(tokens=[1, 2, 3], token_type=[1] * 3),
        "tokens holds 1, expected texts",
    ),
    "types that are texts": (
        byte_level(token_type=["1"] * 3),
        "token_type holds '1', expected numbers",
    ),
    "types of a part": (byte_level(token_type=[1]), "3 tokens, 1 types"),
    "scores of a part": (pieces(scores=[0.0]), "4 tokens, 4 types and 1 scores"),
    "merges that are numbers": (byte_level(merges=[1]), "merges holds 1, expected pairs"),
    "an empty merge": (byte_level(merges=[""]), "merges do not fit"),
    "a token twice": (byte_level("a"), "'a' twice"),
}


@pytest.mark.parametrize("name", WRONG)
def test_other_types_are_one_sentence(name: str) -> None:
    metadata, says = WRONG[name]
    with pytest.raises(CheckpointError, match=f"^tiny.gguf: .*{says}"):
        read(metadata)


def test_more_types_than_tokens_and_empty_tokens(capfd: pytest.CaptureFixture[str]) -> None:
    """llama.cpp reads both."""
    found = read(byte_level("", "x", token_type=[NORMAL] * 9, eos_token_id=-1))
    assert Tokenizer.from_str(found.files["tokenizer.json"]).token_to_id("[EMPTY_3]") == 3
    assert found.generation == {} and capfd.readouterr() == ("", "")
