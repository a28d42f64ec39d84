"""A SentencePiece model file (tokenizer.model) -> a tokenizer, as transformers converts it.

The conversion is that of transformers' LlamaConverter, the converter of a LlamaTokenizer. Of the
settings in the files beside the model, only `legacy` and `add_prefix_space` are used.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, models

from gptx.artifact.protobuf import fields_of
from gptx.errors import CheckpointError
from gptx_models.checkpoints.read_files import check_file
from gptx_models.checkpoints.tell import Tell
from gptx_models.checkpoints.tokenizer_parts import set_llama_parts

# Values of two enums in sentencepiece_model.proto.
_UNIGRAM, _BPE = 1, 2  # TrainerSpec.model_type
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # SentencePiece.type


@dataclass
class SentencePieceModel:
    """The content of a model file.

    texts, scores and types: lists with one entry for each token id. unknown: the text of the
    unknown token. charsmap: true if the normalizer has a table that replaces characters.
    """

    texts: list[str]
    scores: list[float]
    types: list[int]
    model_type: int = _UNIGRAM
    unknown: str = "<unk>"
    charsmap: bool = False
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True


def read_sentencepiece_model(
    path: Path, config: Mapping[str, Any], tell: Tell
) -> tuple[str, Tokenizer]:
    """(the text of tokenizer.json, the tokenizer).

    config: tokenizer_config.json. `tell` is called with a line if the model normalizes text in a
    way that the conversion leaves out. Raises CheckpointError.
    """
    model = _parse(path)
    if model.model_type not in (_UNIGRAM, _BPE):
        raise CheckpointError(
            f"{path} is a SentencePiece model of type {model.model_type}, expected unigram or BPE"
        )
    if len(set(model.texts)) != len(model.texts):
        raise CheckpointError(
            f"{path} is damaged: two of its {len(model.texts):,} tokens have the same text"
        )
    _tell_left_out_steps(path, model, tell)
    tokenizer = Tokenizer(_tokenizers_model(model))
    tokenizer.add_tokens(
        [
            AddedToken(text, normalized=False, special=kind == _CONTROL)
            for text, kind in zip(model.texts, model.types)
            if kind in (_CONTROL, _USER_DEFINED)
        ]
    )
    set_llama_parts(
        tokenizer,
        add_prefix_space=config.get("add_prefix_space") in (None, True),
        legacy=config.get("legacy") in (None, True),
    )
    return tokenizer.to_str(pretty=False), tokenizer


def _tokenizers_model(model: SentencePieceModel) -> Any:
    """The BPE or Unigram model. The unknown, bos and eos token (ids 0 to 2) get the score 0."""
    scores = [0.0, 0.0, 0.0, *model.scores[3:]][: len(model.scores)]
    if model.model_type == _UNIGRAM:
        return models.Unigram(list(zip(model.texts, scores)), 0, True)
    vocab = {text: token for token, text in enumerate(model.texts)}
    merges = _merges(vocab, dict(zip(model.texts, scores)))
    return models.BPE(vocab, merges, unk_token=model.unknown, fuse_unk=True, byte_fallback=True)


def _tell_left_out_steps(path: Path, model: SentencePieceModel, tell: Tell) -> None:
    """Name the steps of SentencePiece that transformers' tokenizer of this class does not do."""
    steps = {
        "normalizes characters": model.charsmap,
        "adds no space before a text": not model.add_dummy_prefix,
        "takes repeated spaces out": model.remove_extra_whitespaces,
    }
    names = [name for name, is_done in steps.items() if is_done]
    if names:
        tell(
            f"{path} {' and '.join(names)}, and transformers' LlamaTokenizerFast does not: gptx"
            " does as transformers"
        )


def _merges(vocab: dict[str, int], scores: dict[str, float]) -> list[tuple[str, str]]:
    """The merges of a BPE model in transformers' order.

    That order is by the score of the merged token, then by the lengths of the two parts.
    """
    found: list[tuple[float, str, str]] = []
    for text, score in scores.items():
        cuts = [(text[:at], text[at:]) for at in range(1, len(text))]
        parts = [(left, right) for left, right in cuts if left in vocab and right in vocab]
        parts.sort(key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
        found += [(score, *pair) for pair in parts]
    found.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2])), reverse=True)
    return [(left, right) for _, left, right in found]


def _parse(path: Path) -> SentencePieceModel:
    """The content of a model file. Raises CheckpointError if it is another file, or damaged."""
    check_file(path)
    raw = path.read_bytes()
    try:
        model = _parse_model(raw)
    except (ValueError, KeyError, struct.error) as error:
        # ValueError includes UnicodeDecodeError
        raise CheckpointError(
            f"{path} is not a whole SentencePiece model ({error}): give the model's tokenizer.json"
            f" with --tokenizer{_other_kind(raw)}"
        ) from error
    return model


def _parse_model(raw: bytes) -> SentencePieceModel:
    """The fields of a ModelProto (sentencepiece_model.proto)."""
    model = SentencePieceModel([], [], [])
    for number, _, value in fields_of(raw):
        if number == 1:
            piece = _message(value)
            model.texts.append(_bytes(piece[1]).decode("utf-8"))
            model.scores.append(struct.unpack("<f", _bytes(piece.get(2, bytes(4))))[0])
            model.types.append(_int(piece.get(3, _NORMAL)))
        elif number == 2:
            trainer = _message(value)
            model.model_type = _int(trainer.get(3, _UNIGRAM))
            model.unknown = _bytes(trainer.get(45, b"<unk>")).decode("utf-8")
        elif number == 3:
            normalizer = _message(value)
            model.charsmap = bool(normalizer.get(2))
            model.add_dummy_prefix = bool(normalizer.get(3, 1))
            model.remove_extra_whitespaces = bool(normalizer.get(4, 1))
    if not model.texts:
        raise ValueError("it holds no tokens")
    return model


def _message(value: int | bytes) -> dict[int, int | bytes]:
    """The fields of an inner message: field number -> value, the last one of each."""
    return {number: inner for number, _, inner in fields_of(_bytes(value))}


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number where bytes are expected")
    return value


def _int(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise ValueError("bytes where a number is expected")
    return value


def _other_kind(raw: bytes) -> str:
    """Name the other format of a file that is no SentencePiece model; empty if unknown."""
    first = raw[:200].split(b"\n")[0].split(b" ")
    if len(first) == 2 and first[1].strip().isdigit():
        return " (this one is tiktoken's, as of Llama 3)"
    try:
        json.loads(raw)
    except ValueError:
        return ""
    return " (this one is JSON, as Mistral's Tekken)"
