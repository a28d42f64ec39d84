"""A tokenizer.model (SentencePiece) is read as transformers converts it, or refused by name."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from gptx.errors import CheckpointError
from gptx.text.tokenizer import load_tokenizer
from gptx_models.checkpoints.tokenizer_files import read_tokenizer_folder
from gptx_models.importers.tokenizer_path import read_tokenizer_path

# transformers converts with it; gptx does not need it
sentencepiece = pytest.importorskip("sentencepiece")

CORPUS = [
    "the cat sat on the mat",
    "the dog sat on the log",
    "how are you? fine, thank you.",
    "a tab\tand 12 numbers",
] * 9
TEXTS = [
    "",
    "the cat",
    "  two  spaces and é 😀 ½ ﬁ Ａ",
    "a<s>b</s> c <unk> the<|mark|>dog",
    "<|mark|> hi\n\nnew\tline 12345",
    " the ",
]
OPTIONS = {
    "bpe": {"model_type": "bpe"},
    "unigram": {"model_type": "unigram"},
    "bpe without bytes": {"model_type": "bpe", "byte_fallback": False},
    "bpe without a dummy prefix": {"model_type": "bpe", "add_dummy_prefix": False},
    "bpe that normalizes": {
        "model_type": "bpe",
        "normalization_rule_name": "nmt_nfkc",
        "remove_extra_whitespaces": True,
    },
}


@pytest.fixture(scope="module")
def trained() -> dict[str, bytes]:
    made = {}
    for name, options in OPTIONS.items():
        out = io.BytesIO()
        settings: dict[str, Any] = {
            "vocab_size": 330,
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "user_defined_symbols": ["<|mark|>"],
            "hard_vocab_limit": False,
            "minloglevel": 2,
            **options,
        }
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS), model_writer=out, **settings
        )
        made[name] = out.getvalue()
    return made


def folder_of(place: Path, model: bytes, config: dict[str, Any] | None) -> Path:
    place.mkdir()
    (place / "tokenizer.model").write_bytes(model)
    (place / "config.json").write_text('{"model_type": "llama"}')
    if config is not None:
        (place / "tokenizer_config.json").write_text(json.dumps(config))
    return place


LLAMA = {"tokenizer_class": "LlamaTokenizer"}
SETTINGS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "legacy": {**LLAMA, "legacy": True},
    "not legacy": {**LLAMA, "legacy": False, "add_eos_token": True},
    "no prefix": {**LLAMA, "legacy": False, "add_prefix_space": False},
    "legacy, no prefix": {
        **LLAMA,
        "legacy": True,
        "add_prefix_space": False,
        "add_bos_token": False,
    },
    "a pad": {**LLAMA, "pad_token": "<pad>", "additional_special_tokens": ["<|mark|>"]},
}


PAIRS = [(kind, settings) for kind in ("bpe", "unigram") for settings in SETTINGS]
PAIRS += [(kind, settings) for kind in list(OPTIONS)[2:] for settings in ("none", "not legacy")]


@pytest.mark.parametrize(("kind", "settings"), PAIRS)
def test_as_transformers_converts_it(
    kind: str, settings: str, trained: dict[str, bytes], tmp_path: Path
) -> None:
    folder = folder_of(tmp_path / "in", trained[kind], SETTINGS[settings])
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    out = tmp_path / "out"
    out.mkdir()
    for file, text in read_tokenizer_folder(folder, 400).files.items():
        (out / file).write_text(text)
    ours = load_tokenizer(out, tokenizer_vocab_size=None, vocab_size=400)
    assert ours is not None and ours.special == theirs.special_tokens_map
    for text in TEXTS:
        ids = theirs(text).input_ids
        assert ours.encode(text) == ids, text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), text


def test_what_the_conversion_leaves_out_is_told(trained: dict[str, bytes], tmp_path: Path) -> None:
    said: list[str] = []
    read_tokenizer_folder(
        folder_of(tmp_path / "in", trained["bpe that normalizes"], LLAMA), 400, tell=said.append
    )
    assert "normalizes characters and takes repeated spaces out" in said[0]
    read_tokenizer_folder(
        folder_of(tmp_path / "plain", trained["bpe"], LLAMA), 400, tell=said.append
    )
    assert len(said) == 1


def test_given_alone(trained: dict[str, bytes], tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", trained["bpe"], LLAMA)
    assert (
        read_tokenizer_path(folder / "tokenizer.model", 400).files
        == read_tokenizer_folder(folder, 400).files
    )


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"sentencepiece", "is not a whole SentencePiece model"),
        (b"IQ== 0\nIg== 1\n", "tiktoken"),
        (b'{"config": {"pattern": "x"}, "vocab": []}', "Tekken"),
        (b"", "is empty"),
    ],
)
def test_other_files_are_refused(raw: bytes, says: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"tokenizer.model.*{says}"):
        read_tokenizer_folder(folder_of(tmp_path / "in", raw, LLAMA), 400)


def test_damage(trained: dict[str, bytes], tmp_path: Path) -> None:
    """A file that is cut short or changed at any byte is read, or is a CheckpointError."""
    model = trained["bpe"]
    refused = 0
    for number, at in enumerate(range(1, len(model), len(model) // 60)):
        for changed in (model[:at], model[: at - 1] + bytes([model[at - 1] ^ 0x55]) + model[at:]):
            folder = folder_of(tmp_path / f"{number}-{len(changed)}", changed, LLAMA)
            try:
                read_tokenizer_folder(folder, 400)
            except CheckpointError as error:
                assert "\n" not in str(error)
                refused += 1
    assert refused > 60


def test_a_class_that_reads_it_otherwise(trained: dict[str, bytes], tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", trained["bpe"], {"tokenizer_class": "T5Tokenizer"})
    with pytest.raises(
        CheckpointError, match="tokenizer.model and no tokenizer.json.*not of T5Tokenizer"
    ):
        read_tokenizer_folder(folder, 400)
