"""The bytes that each token adds to a text, and the tokens of a text that stands inside another.

A `tokenizers.Tokenizer` in. A grammar (engine/structure.py) decides by these bytes which tokens may
come next. This file knows no grammars.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from gptx.errors import UsageError

Piece = str | bytes  # a token's text, or its bytes once a decoder step has made them


def token_bytes(inner: Any) -> list[bytes]:
    """The bytes of each token id, as `inner.decode` writes them; b"" for an id without a token.

    Raises UsageError if the text of a token depends on the tokens beside it: WordPiece, GPT-1's
    BPE (</w> is a space, but not at the end), or a tokenizer.json without a decoder.
    """
    steps = _decoder_steps(inner)
    vocabulary: dict[str, int] = inner.get_vocab(with_added_tokens=True)
    found = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for token, token_id in vocabulary.items():
        piece: Piece = token
        for step in steps:
            if isinstance(piece, str):
                piece = step(piece)
        found[token_id] = piece if isinstance(piece, bytes) else piece.encode()
    return found


def inner_encoder(inner: Any) -> Callable[[str], list[int]]:
    """A function from a text to its token ids where the text stands inside another one.

    No special token is added or recognized, and no space is put in front of the text.
    """
    import tokenizers

    settings = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": _without_prefix(_state(inner.normalizer)),
        "pre_tokenizer": _without_prefix(_state(inner.pre_tokenizer)),
        "post_processor": None,
        "decoder": None,
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }
    made = tokenizers.Tokenizer.from_str(json.dumps(settings))
    made.model = inner.model  # shared, not copied
    return lambda text: made.encode(text, add_special_tokens=False).ids


def _state(part: Any) -> Any:
    """The JSON of a part of a tokenizer, as tokenizer.json holds it; None if there is no part."""
    return None if part is None else json.loads(part.__getstate__())


def _without_prefix(state: Any) -> Any:
    """A normalizer's or pre-tokenizer's JSON, so that it puts no space in front of a text."""
    match state:
        case {"type": "Prepend"}:
            return None
        case {"type": "Metaspace"}:
            return {**state, "prepend_scheme": "never"}
        case {"type": "ByteLevel"}:
            return {**state, "add_prefix_space": False}
        case {"type": "Sequence"}:
            parts = "normalizers" if "normalizers" in state else "pretokenizers"
            kept = [part for part in map(_without_prefix, state[parts]) if part is not None]
            return {**state, parts: kept}
    return state


def _decoder_steps(inner: Any) -> list[Callable[[str], Piece]]:
    """What the decoder does with a token's text, step by step. Raises UsageError (token_bytes)."""
    decoder = _state(inner.decoder)
    steps: list[Callable[[str], Piece]] = []
    joined = False  # the steps from here on see the text of all tokens together
    for part in decoder["decoders"] if decoder and decoder["type"] == "Sequence" else [decoder]:
        match part:
            case {"type": "ByteLevel"}:
                steps.append(_from_byte_level)
            case {"type": "ByteFallback"}:
                steps.append(_from_byte_token)
            case {"type": "Metaspace", "replacement": mark}:
                steps.append(_replace(mark, " "))
            case {"type": "Replace", "pattern": {"String": old}, "content": new} if not joined:
                steps.append(_replace(old, new))
            case {"type": "Fuse"}:
                joined = True
            case {"type": "Strip"} if joined:
                pass  # changes the start or end of the whole text only
            case _:
                kind = part["type"] if part else "no"
                raise UsageError(
                    "structured output is not possible with this artifact: the text of a token "
                    f"depends on the tokens beside it (its tokenizer.json has {kind} decoder)"
                )
    return steps


def _replace(old: str, new: str) -> Callable[[str], str]:
    return lambda token: token.replace(old, new)


def _from_byte_token(token: str) -> Piece:
    """b"\\n" for "<0x0A>"."""
    byte = re.fullmatch("<0x([0-9A-Fa-f]{2})>", token)
    return bytes.fromhex(byte[1]) if byte else token


def _byte_level_alphabet() -> dict[int, int]:
    """For str.translate: the characters of byte-level BPE to characters with the byte's value.

    Printable bytes stand for themselves, the others are U+0100 and up in order (GPT-2's
    bytes_to_unicode). A character below U+0100 that stands for no byte becomes one above it.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(0x100) if byte not in printable]
    return {0x100 + at: byte for at, byte in enumerate(others)} | dict.fromkeys(others, 0x100)


_BYTE_LEVEL = _byte_level_alphabet()


def _from_byte_level(token: str) -> bytes:
    """b" the" for "Ġthe". A token with other characters is its own text, as in `tokenizers`."""
    try:
        return token.translate(_BYTE_LEVEL).encode("latin-1")
    except UnicodeEncodeError:
        return token.encode()
