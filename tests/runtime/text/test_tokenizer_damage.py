"""A damaged tokenizer.json is refused in one sentence when it is read, with no other output."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from builders.tokenizers_of_all_kinds import byte_level, llama
from gpt_export.side_files import token_facts
from gptx.errors import ArtifactError, CheckpointError
from gptx.text.tokenizer import load_tokenizer
from gptx_models.checkpoints.tokenizer_files import (
    check_vocabulary,
    read_tokenizer_folder,
    read_tokenizer_json,
)

VOCABULARY = 400
WORD = "Ġthe"  # in the vocabulary of byte_level


def vocabulary(raw: dict[str, Any]) -> dict[str, Any]:
    return raw["model"]["vocab"]


def put(token: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda raw: vocabulary(raw).__setitem__(token, value)


def added(token_id: int) -> Callable[[dict[str, Any]], None]:
    flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    return lambda raw: raw["added_tokens"].append({"id": token_id, "content": "<x>", **flags})


def hole_before_an_added_token(raw: dict[str, Any]) -> None:
    """The library gives <x> the next id by counting tokens: the id that the last token has."""
    last = max(vocabulary(raw), key=vocabulary(raw).__getitem__)
    vocabulary(raw)[last] += 1
    added(vocabulary(raw)[last])(raw)


def damaged(
    folder: Path, change: Callable[[dict[str, Any]], None], inner: Tokenizer | None = None
) -> Path:
    raw = json.loads((inner or byte_level()).to_str())
    change(raw)
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    return folder


DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "two tokens on one id": (put(WORD, 5), "both have the id 5"),
    "an added token on the id of another": (hole_before_an_added_token, "both have the id"),
    "an id beyond the model's rows": (put(WORD, VOCABULARY), "ids up to 400.*400 tokens"),
    "a huge id": (put(WORD, 2**31), "ids up to 2,147,483,648.*400 tokens"),
    "an id beyond 32 bits": (put(WORD, 2**32), "4294967296"),
    "a negative id": (put(WORD, -1), "-1"),
    "an id that is a text": (put(WORD, "5"), "5"),
    "no vocabulary": (lambda raw: raw["model"].pop("vocab"), "vocab|variant"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_it_is_found_when_it_is_read(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    change, says = DAMAGE[name]
    folder = damaged(tmp_path, change)
    known = byte_level().get_vocab_size()
    began = time.perf_counter()
    for manifest in (known, known + 1, None):  # the vocab_size in gptx.json, if it has one
        with pytest.raises(ArtifactError, match=f"tokenizer.json.*({says})"):
            load_tokenizer(folder, tokenizer_vocab_size=manifest, vocab_size=VOCABULARY)
    with pytest.raises(CheckpointError, match=f"tokenizer.*({says})"):
        for file, text in read_tokenizer_folder(folder, VOCABULARY).files.items():
            (folder / file).write_text(text)
        check_vocabulary(folder / "tokenizer.json", VOCABULARY)
    assert time.perf_counter() - began < 5
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("token_id", [0, 340, 2**31, -1])
def test_an_added_token_must_have_the_next_id(token_id: int, tmp_path: Path) -> None:
    """The library gives an added token the next free id, and ignores the id in the file."""
    folder = damaged(tmp_path, added(token_id))
    with pytest.raises(
        CheckpointError, match="tokenizer.json.*" + ("'<x>' the id" if token_id >= 0 else "-1")
    ):
        read_tokenizer_folder(folder, VOCABULARY)


@pytest.mark.parametrize(
    "raw", [b'{"version": "1.0", "x": "\xff"}', b"[1]", b"{", b"", b"\xef\xbb\xbf{}", b"null"]
)
def test_what_is_no_json_object(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(raw)
    with pytest.raises(CheckpointError, match="tokenizer.json"):
        read_tokenizer_folder(tmp_path, VOCABULARY)
    with pytest.raises(CheckpointError, match="tokenizer.json"):
        read_tokenizer_json(tmp_path / "tokenizer.json")
    with pytest.raises(ArtifactError, match="tokenizer.json"):
        load_tokenizer(tmp_path, tokenizer_vocab_size=None, vocab_size=VOCABULARY)


@pytest.mark.parametrize("beside", [{}, {"additional_special_tokens": [WORD]}])
@pytest.mark.parametrize("make", [byte_level, llama])
def test_a_hole_is_no_damage_and_prints_nothing(
    make: Callable[[], Tokenizer],
    beside: dict[str, Any],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The tokenizers library prints a line when it writes a vocabulary with a hole."""

    def hole(raw: dict[str, Any]) -> None:
        last = max(vocabulary(raw), key=vocabulary(raw).__getitem__)
        vocabulary(raw)[last] += 3

    folder = damaged(tmp_path, hole, make())
    capfd.readouterr()
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **beside})
    )
    for file, text in read_tokenizer_folder(folder, VOCABULARY).files.items():
        (folder / file).write_text(text)
    known = token_facts(folder)["vocab_size"]
    ours = load_tokenizer(folder, tokenizer_vocab_size=known, vocab_size=VOCABULARY)
    assert ours is not None and known == make().get_vocab_size() + 3 == ours.vocab_size
    assert isinstance(ours.byte_ids, frozenset) and ours.encode("the cat")
    assert capfd.readouterr() == ("", "")


def test_added_tokens_without_rows_are_left_out(tmp_path: Path) -> None:
    """LLaMA fine-tunes have a [PAD] beyond the model's vocabulary, and are right otherwise."""
    inner = byte_level()
    known = inner.get_vocab_size()
    inner.add_special_tokens(["[PAD]"])
    inner.save(str(tmp_path / "tokenizer.json"))
    named = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "[PAD]",
        "eos_token": "<|endoftext|>",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    said: list[str] = []
    read = read_tokenizer_folder(tmp_path, known, tell=said.append)
    assert said == [
        f"{tmp_path}: the added token '[PAD]' is beyond the model's {known} tokens: left out"
    ]
    assert read.generation == {"eos_token_id": 0}
    left = Tokenizer.from_str(read.files["tokenizer.json"])
    assert left.get_vocab_size() == known and "[PAD]" not in read.files["tokenizer_config.json"]
