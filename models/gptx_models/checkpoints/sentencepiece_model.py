"""A SentencePiece model file (tokenizer.model) -> a tokenizer, as transformers converts that of a LlamaTokenizer.

Reads the file's protocol buffers itself, so that neither sentencepiece nor protobuf is needed. Knows nothing of the files
beside it but two settings: `legacy` and add_prefix_space.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, models

from gptx.errors import CheckpointError
from gptx_models.checkpoints.read_files import check_file
from gptx_models.checkpoints.tokenizer_overlay import Tell, set_llama_parts

UNIGRAM, BPE = 1, 2  # trainer_spec.model_type
CONTROL, USER_DEFINED = 3, 4  # the type of a piece; 1 is normal


@dataclass
class Pieces:
    """What the file says: each token with its score and type, and how a text is made ready for them."""

    texts: list[str]
    scores: list[float]
    types: list[int]
    model_type: int = UNIGRAM
    unknown: str = "<unk>"
    charsmap: bool = False  # normalizes characters by a table
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True


def read_sentencepiece_model(
    path: Path, config: Mapping[str, Any], tell: Tell
) -> tuple[str, Tokenizer]:
    """(tokenizer.json, the tokenizer). config: tokenizer_config.json. Raises CheckpointError."""
    pieces = _parse(path)
    if pieces.model_type not in (UNIGRAM, BPE):
        raise CheckpointError(
            f"{path} is a SentencePiece model of type {pieces.model_type}, expected unigram or BPE"
        )
    if len(set(pieces.texts)) != len(pieces.texts):
        raise CheckpointError(
            f"{path} is damaged: two of its {len(pieces.texts):,} tokens have the same text"
        )
    _tell_what_is_left(path, pieces, tell)
    scores = [0.0, 0.0, 0.0, *pieces.scores[3:]][: len(pieces.scores)]  # unknown, beginning and end
    vocab = {text: token for token, text in enumerate(pieces.texts)}
    if pieces.model_type == BPE:
        merges = _merges(vocab, dict(zip(pieces.texts, scores)))
        model: Any = models.BPE(
            vocab, merges, unk_token=pieces.unknown, fuse_unk=True, byte_fallback=True
        )
    else:
        model = models.Unigram(list(zip(pieces.texts, scores)), 0, True)
    tokenizer = Tokenizer(model)
    tokenizer.add_tokens(
        [
            AddedToken(text, normalized=False, special=kind == CONTROL)
            for text, kind in zip(pieces.texts, pieces.types)
            if kind in (CONTROL, USER_DEFINED)
        ]
    )
    set_llama_parts(
        tokenizer,
        add_prefix_space=config.get("add_prefix_space") in (None, True),
        legacy=config.get("legacy") in (None, True),
    )
    return tokenizer.to_str(pretty=False), tokenizer


def _tell_what_is_left(path: Path, pieces: Pieces, tell: Tell) -> None:
    """Name what SentencePiece does to a text and transformers' tokenizer of this class does not."""
    left = {
        "normalizes characters": pieces.charsmap,
        "adds no space before a text": not pieces.add_dummy_prefix,
        "takes repeated spaces out": pieces.remove_extra_whitespaces,
    }
    names = [name for name, there in left.items() if there]
    if names:
        tell(
            f"{path} {' and '.join(names)}, and transformers' LlamaTokenizerFast does not: gptx does as transformers"
        )


def _merges(vocab: dict[str, int], scores: dict[str, float]) -> list[tuple[str, str]]:
    """transformers' order: by the score of the result, then by the lengths of the parts."""
    found: list[tuple[float, str, str]] = []
    for text, score in scores.items():
        cuts = [(text[:at], text[at:]) for at in range(1, len(text))]
        parts = [(left, right) for left, right in cuts if left in vocab and right in vocab]
        found += [
            (score, *pair)
            for pair in sorted(parts, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
        ]
    found.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2])), reverse=True)
    return [(left, right) for _, left, right in found]


def _parse(path: Path) -> Pieces:
    check_file(path)
    raw = path.read_bytes()
    pieces = Pieces([], [], [])
    try:
        for number, value in _fields(raw):
            if number == 1:
                piece = dict(_fields(_bytes(value)))
                pieces.texts.append(_bytes(piece[1]).decode("utf-8"))
                pieces.scores.append(struct.unpack("<f", _bytes(piece.get(2, bytes(4))))[0])
                pieces.types.append(_int(piece.get(3, 1)))
            elif number == 2:
                trainer = dict(_fields(_bytes(value)))
                pieces.model_type = _int(trainer.get(3, UNIGRAM))
                pieces.unknown = _bytes(trainer.get(45, b"<unk>")).decode("utf-8")
            elif number == 3:
                normalizer = dict(_fields(_bytes(value)))
                pieces.charsmap = bool(normalizer.get(2))
                pieces.add_dummy_prefix = bool(normalizer.get(3, 1))
                pieces.remove_extra_whitespaces = bool(normalizer.get(4, 1))
        if not pieces.texts:
            raise ValueError("it holds no tokens")
    except (
        ValueError,
        KeyError,
        IndexError,
        struct.error,
    ) as error:  # UnicodeDecodeError is a ValueError
        raise CheckpointError(
            f"{path} is not a whole SentencePiece model ({error}): give the model's tokenizer.json with --tokenizer"
            f"{_other_kind(raw)}"
        ) from error
    return pieces


def _other_kind(raw: bytes) -> str:
    """What the file is, where it is one of the other files that are called tokenizer.model."""
    first = raw[:200].split(b"\n")[0].split(b" ")
    if len(first) == 2 and first[1].strip().isdigit():
        return " (this one is tiktoken's, as of Llama 3)"
    try:
        json.loads(raw)
    except ValueError:
        return ""
    return " (this one is JSON, as Mistral's Tekken)"


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number where bytes are expected")
    return value


def _int(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise ValueError("bytes where a number is expected")
    return value


def _fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protocol-buffers message: (number, value); a value of fixed size comes as its bytes."""
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(raw, at)
            yield key >> 3, value
            continue
        if kind not in (1, 2, 5):
            raise ValueError(f"a field of unknown kind {kind}")
        size, at = _varint(raw, at) if kind == 2 else (8 if kind == 1 else 4, at)
        if size > len(raw) - at:
            raise ValueError("it is cut short")
        yield key >> 3, raw[at : at + size]
        at += size


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = raw[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number that does not end")
