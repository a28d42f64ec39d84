"""Tokenizer settings outside tokenizer.json.

The tokenizer that gptx reads equals transformers' AutoTokenizer, token for token.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer

from builders.tokenizers_of_all_kinds import byte_level, llama, word_piece
from gptx.errors import CheckpointError
from gptx.text.tokenizer import load_tokenizer
from gptx_models.checkpoints.tokenizer_files import read_tokenizer_folder

VOCABULARY = 400  # the model's ids: more than any of the tokenizers has
TEXTS = (
    "the cat",
    " The  cat sat.\n",
    "hi<|im_end|> there <|im_start|>user\n",
    "<|endoftext|>a </s> b<s>",
    "x <mark> y<mark>z  <Mark> words<w>and <w> more",
)


def flags(content: str, **changes: Any) -> dict[str, Any]:
    plain = dict(lstrip=False, rstrip=False, single_word=False, normalized=False, special=True)
    return {"content": content, **plain, **changes}


def token(content: str, **changes: Any) -> dict[str, Any]:
    return {"__type": "AddedToken", **flags(content, **changes)}


GPT2 = {
    "tokenizer_class": "GPT2Tokenizer",
    **dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
}
LLAMA = {
    "tokenizer_class": "LlamaTokenizer",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
}
FAST = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
BERT = {"tokenizer_class": "BertTokenizer"}
CHATML = ["<|im_start|>", "<|im_end|>"]
KNOWN = byte_level().get_vocab_size()
DECODER = {
    "0": flags("<|endoftext|>"),
    str(KNOWN): flags("<|im_start|>"),
    str(KNOWN + 1): flags("<|im_end|>"),
}
Files = dict[str, Any]
Make = Callable[[], Tokenizer]


def files(
    config: Files | None = None, special: Files | None = None, added: Files | None = None
) -> dict[str, Files]:
    named = {"tokenizer_config": config, "special_tokens_map": special, "added_tokens": added}
    return {f"{name}.json": values for name, values in named.items() if values is not None}


def truncating() -> Tokenizer:
    inner = byte_level()
    inner.enable_truncation(max_length=3)
    inner.enable_padding(length=9, pad_id=0, pad_token="<|endoftext|>")
    return inner


def with_marks() -> Tokenizer:
    inner = byte_level()
    inner.add_tokens(["<mark>"])
    return inner


CASES: dict[str, tuple[Make, dict[str, Files]]] = {
    "nothing beside it, of a llama": (llama, {}),
    "an empty configuration": (llama, files({})),
    "truncation and padding": (truncating, files(FAST)),
    "prefix space on": (byte_level, files({**GPT2, "add_prefix_space": True})),
    "prefix space off": (
        lambda: byte_level(add_prefix_space=True),
        files({**GPT2, "add_prefix_space": False}),
    ),
    "prefix space not named": (lambda: byte_level(add_prefix_space=True), files(FAST)),
    "no bos": (llama, files({**LLAMA, "add_bos_token": False})),
    "eos too": (llama, files({**LLAMA, "add_eos_token": True})),
    "eos alone": (llama, files({**LLAMA, "add_bos_token": False, "add_eos_token": True})),
    "another bos": (llama, files({**LLAMA, "bos_token": "</s>"})),
    "a bos that is new": (llama, files({**LLAMA, "bos_token": "<bos>"})),
    "bos of a class that does not read it": (byte_level, files({**GPT2, "add_bos_token": True})),
    "GPT-NeoX with bos": (
        byte_level,
        files({"tokenizer_class": "GPTNeoXTokenizer", "add_bos_token": True}),
    ),
    "Qwen2 names a pad": (byte_level, files({"tokenizer_class": "Qwen2Tokenizer"})),
    "Qwen2 without a pad": (
        byte_level,
        files({"tokenizer_class": "Qwen2TokenizerFast", "pad_token": None}),
    ),
    "Gemma on a llama's tokens": (
        llama,
        files({"tokenizer_class": "GemmaTokenizer", "bos_token": "<s>"}),
    ),
    "added_tokens_decoder": (
        byte_level,
        files({**FAST, "eos_token": "<|im_end|>", "added_tokens_decoder": DECODER}),
    ),
    "added_tokens_decoder goes before the map": (
        byte_level,
        files(
            {**FAST, "added_tokens_decoder": DECODER}, {"eos_token": "<|im_end|>"}, {"<ghost>": 399}
        ),
    ),
    "other flags for a token that is there": (
        with_marks,
        files(
            {
                **FAST,
                "added_tokens_decoder": {str(KNOWN): flags("<mark>", lstrip=True, rstrip=True)},
            }
        ),
    ),
    "a single word": (
        byte_level,
        files(
            {
                **FAST,
                "added_tokens_decoder": {str(KNOWN): flags("<w>", single_word=True, special=False)},
            }
        ),
    ),
    "the map goes before the configuration": (
        lambda: byte_level(("<|endoftext|>", "<|im_end|>")),
        files(FAST, {"eos_token": "<|im_end|>"}),
    ),
    "the map takes a token away": (
        byte_level,
        files({**FAST, "pad_token": "<pad>"}, {"pad_token": None}),
    ),
    "tokens as objects": (
        byte_level,
        files(
            {**FAST, "pad_token": token("<pad>", lstrip=True)},
            {"bos_token": flags("<|im_start|>", rstrip=True)},
        ),
    ),
    "added_tokens.json": (
        byte_level,
        files(
            {**FAST, "eos_token": "<|im_end|>"},
            {"additional_special_tokens": ["<|im_start|>"]},
            {"<|im_start|>": KNOWN, "<|im_end|>": KNOWN + 1, "<mark>": KNOWN + 2},
        ),
    ),
    "additional tokens in both": (
        byte_level,
        files(
            {**FAST, "additional_special_tokens": CHATML},
            {"additional_special_tokens": ["<mark>", flags("<w>")]},
        ),
    ),
    "additional tokens of the vocabulary": (
        byte_level,
        files({**FAST, "additional_special_tokens": ["the"]}),
    ),
    "an end that is an additional token too": (
        byte_level,
        files({**FAST, "eos_token": "<|im_end|>", "additional_special_tokens": CHATML}),
    ),
    "a special token that its flags call none": (
        with_marks,
        files({**FAST, "eos_token": "<mark>"}),
    ),
    "additional tokens with other flags": (
        with_marks,
        files(FAST, {"additional_special_tokens": [flags("<mark>", lstrip=True)]}),
    ),
    "tokens of Roberta's class": (
        byte_level,
        files({"tokenizer_class": "RobertaTokenizer", "pad_token": "the"}),
    ),
    "a class like Bert's": (word_piece, files({"tokenizer_class": "ElectraTokenizerFast"})),
    "extra tokens by name": (
        byte_level,
        files({**FAST, "extra_special_tokens": {"image_token": "<mark>", "box_token": "the"}}),
    ),
    "lower case of a class that lowers": (word_piece, files(BERT)),
    "lower case off": (
        word_piece,
        files({**BERT, "do_lower_case": False, "tokenize_chinese_chars": False}),
    ),
    "a length that must not cut": (
        byte_level,
        files({**FAST, "model_max_length": 2, "padding_side": "left"}),
    ),
    "special tokens that are text": (
        lambda: byte_level(("<|endoftext|>", *CHATML)),
        files({**FAST, "split_special_tokens": True}),
    ),
    "settings that do nothing here": (
        llama,
        files({**LLAMA, "legacy": False, "use_default_system_prompt": True, "sp_model_kwargs": {}}),
    ),
}


def folder_of(place: Path, make: Make, beside: dict[str, Files], model_type: str = "llama") -> Path:
    place.mkdir()
    make().save(str(place / "tokenizer.json"))
    (place / "config.json").write_text(json.dumps({"model_type": model_type}))
    for name, values in beside.items():
        (place / name).write_text(json.dumps(values))
    return place


@pytest.mark.parametrize("name", CASES)
def test_as_transformers(name: str, tmp_path: Path) -> None:
    """The ids, texts and special tokens are transformers'.

    transformers reads the written files as it reads the given ones.
    """
    folder = folder_of(tmp_path / "in", *CASES[name])
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text('{"model_type": "llama"}')
    for file, text in read_tokenizer_folder(folder, VOCABULARY).files.items():
        (out / file).write_text(text)
    ours = load_tokenizer(out, tokenizer_vocab_size=None, vocab_size=VOCABULARY)
    again = transformers.AutoTokenizer.from_pretrained(out)
    assert ours is not None
    expected, written = theirs.special_tokens_map, again.special_tokens_map
    assert ours.special == written == expected
    for text in TEXTS:
        ids = theirs(text).input_ids
        assert ours.encode(text) == again(text).input_ids == ids, text
        assert (
            ours.encode(text, add_special_tokens=False)
            == theirs(text, add_special_tokens=False).input_ids
        ), text
        for skipped in (True, False):
            shown = theirs.decode(
                ids, skip_special_tokens=skipped, clean_up_tokenization_spaces=False
            )
            assert ours.decode(ids, skip_special_tokens=skipped) == shown, text


@pytest.mark.parametrize(
    ("wanted", "legacy", "tokens"),
    [
        (True, True, "▁the ▁cat </s> ▁the"),
        (True, False, "▁the ▁cat </s> t h e"),
        (False, True, "t h e ▁cat </s> t h e"),
        (False, False, "t h e ▁cat </s> t h e"),
    ],
)
def test_the_space_before_a_llamas_text(
    wanted: bool, legacy: bool, tokens: str, tmp_path: Path
) -> None:
    """With `legacy`, a space is put before each text between special tokens.

    The expected values are those of transformers' LlamaConverter, by hand: transformers would need
    a tokenizer.model here.
    """
    folder = folder_of(
        tmp_path / "in", llama, files({**LLAMA, "add_prefix_space": wanted, "legacy": legacy})
    )
    read = Tokenizer.from_str(read_tokenizer_folder(folder, VOCABULARY).files["tokenizer.json"])
    found = read.encode("the cat</s>the", add_special_tokens=False)
    assert found.tokens == tokens.split()
    assert read.decode(found.ids, skip_special_tokens=False) == "the cat</s>" + (
        " the" if wanted and legacy else "the"
    )


@pytest.mark.parametrize("name", CASES)
def test_written_files_are_read_as_they_are(name: str, tmp_path: Path) -> None:
    files = read_tokenizer_folder(folder_of(tmp_path / "in", *CASES[name]), VOCABULARY).files
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text('{"model_type": "llama"}')
    for file, text in files.items():
        (out / file).write_text(text)
    said: list[str] = []
    assert read_tokenizer_folder(out, VOCABULARY, tell=said.append).files == files
    assert not said


@pytest.mark.parametrize(
    "config",
    [
        {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True},
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "eos_token": "<|im_end|>",
            "additional_special_tokens": CHATML,
        },
    ],
)
def test_vocab_json_and_merges_txt(config: Files, tmp_path: Path) -> None:
    """Without tokenizer.json, transformers converts the older files, each class in its way."""
    folder, out = tmp_path / "in", tmp_path / "out"
    folder_of(folder, byte_level, files(config))
    (folder / "tokenizer.json").unlink()
    byte_level().model.save(str(folder))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    out.mkdir()
    for file, text in read_tokenizer_folder(folder, VOCABULARY).files.items():
        (out / file).write_text(text)
    ours = load_tokenizer(out, tokenizer_vocab_size=None, vocab_size=VOCABULARY)
    assert ours is not None and ours.special == theirs.special_tokens_map
    for text in (*TEXTS, "cafe\u0301 1234  x"):
        assert ours.encode(text) == theirs(text).input_ids, text


def test_vocab_json_of_another_class_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", byte_level, files({"tokenizer_class": "RobertaTokenizer"}))
    (folder / "tokenizer.json").unlink()
    byte_level().model.save(str(folder))
    with pytest.raises(
        CheckpointError,
        match="vocab.json and merges.txt and no tokenizer.json.*not of RobertaTokenizer",
    ):
        read_tokenizer_folder(folder, VOCABULARY)


def test_the_class_of_transformers_5(tmp_path: Path) -> None:
    """Its name is replaced by the older one, which all loaders know."""
    folder = folder_of(
        tmp_path / "in", byte_level, files({**FAST, "tokenizer_class": "TokenizersBackend"})
    )
    written = json.loads(read_tokenizer_folder(folder, VOCABULARY).files["tokenizer_config.json"])
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
