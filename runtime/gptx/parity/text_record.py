"""What an artifact makes of text, which its logits do not show: recorded when it is made, compared by gptx verify.

Recorded are a text and the token ids that it became, the vocabulary, the tokens that begin, end and pad a text, and what
the chat template made of a small conversation. Artifacts of an older gptx have no such record.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from gptx.artifact.manifest import Tokens
from gptx.errors import ArtifactError, UsageError
from gptx.text.chat_template import ChatTemplate
from gptx.text.tokenizer import Tokenizer

CONVERSATION = [
    {"role": "system", "content": "You answer in one short sentence."},
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": "And of Italy?"},
]
CONVERSATIONS = (CONVERSATION, CONVERSATION[1:], CONVERSATION[1:2])
SHOWN = 4000  # characters of a rendering that are kept
PROMPT = 64  # characters of the text that are encoded as a prompt is, with the special tokens that the tokenizer adds


@dataclass(frozen=True)
class Check:
    """One thing that verify found as it should be, or not."""

    name: str
    what: str  # in words, with what is wrong where something is
    ok: bool


def record_words(
    tokenizer: Tokenizer | None,
    template: ChatTemplate | None,
    tokens: Tokens,
    *,
    text: str | None,
    proof: Sequence[int],
) -> dict[str, Any]:
    """The record of an artifact. `proof`: the token ids that its figures are about; `text`: the text that they
    were encoded from, None where they are of no text."""
    found: dict[str, Any] = {
        "tokenizer": None,
        "tokens": _named(tokens),
        "chat": None,
    }
    if tokenizer is not None:
        text = tokenizer.decode(proof) if text is None else text_of(proof, text, tokenizer)
        ids = tokenizer.encode(text, add_special_tokens=False)
        found["tokenizer"] = {
            "text": text,
            "ids": ids,
            "proved": ids[: len(proof)] == list(proof),
            "prompt": tokenizer.encode(text[:PROMPT]),
            "decoded": _digest(tokenizer.decode(ids)),
            "vocabulary": _vocabulary(tokenizer),
        }
    if template is not None:
        found["chat"] = {"template": _digest(template.source), "texts": _renderings(template)}
    return found


def text_of(ids: Sequence[int], text: str, tokenizer: Tokenizer) -> str:
    """The beginning of `text` whose token ids begin with `ids`; it ends between two words."""
    end = len(tokenizer.decode(ids))
    while True:
        while end < len(text) and not text[end].isspace():
            end += 1
        found = tokenizer.encode(text[:end], add_special_tokens=False)
        if end >= len(text) or found[: len(ids)] == list(ids):
            return text[:end]
        end += 1 + len(text) // 50


def compare_words(
    stored: dict[str, Any] | None,
    tokenizer: Tokenizer | None,
    template: ChatTemplate | None,
    tokens: Tokens,
    proof: Sequence[int],
) -> list[Check]:
    """Each part of the record against the artifact as it is here. `proof`: the token ids that its figures are about."""
    if stored is None:
        return []
    says = _tokens_differ(stored["tokens"], tokens)
    checks = [
        _check("end of text", "the tokens that begin, end and pad a text are as they were", says)
    ]
    if stored["tokenizer"] is not None or tokenizer is not None:
        checks.append(
            _check(
                "tokenizer",
                "encodes and decodes the proof text as it did",
                _differs(stored, tokenizer, proof),
            )
        )
    if stored["chat"] is not None or template is not None:
        checks.append(
            _check(
                "chat template", "writes a conversation as it did", _chat_differs(stored, template)
            )
        )
    return checks


def _check(name: str, good: str, bad: str) -> Check:
    return Check(name, bad or good, not bad)


def _tokens_differ(stored: dict[str, Any], tokens: Tokens) -> str:
    now = _named(tokens)
    wrong = [
        f"{name} {now[name]}, and was {stored.get(name)}"
        for name in now
        if now[name] != stored.get(name)
    ]
    return (
        f"gptx.json names other tokens than when the artifact was made: {'; '.join(wrong)}"
        if wrong
        else ""
    )


def _differs(stored: dict[str, Any], tokenizer: Tokenizer | None, proof: Sequence[int]) -> str:
    was = stored["tokenizer"]
    if was is None or tokenizer is None:
        return "there was none when the artifact was made" if was is None else "it is gone"
    ids = tokenizer.encode(was["text"], add_special_tokens=False)
    if ids != was["ids"]:
        at = next(
            (n for n, pair in enumerate(zip(ids, was["ids"])) if pair[0] != pair[1]),
            min(len(ids), len(was["ids"])),
        )
        return f"encodes the proof text otherwise than when the artifact was made, from its token {at + 1} on"
    shared = min(len(ids), len(proof))
    if was["proved"] and ids[:shared] != list(proof[:shared]):
        return "encodes the stored text to other tokens than those that the figures are about"
    if tokenizer.encode(was["text"][:PROMPT]) != was["prompt"]:
        return "adds other special tokens to a prompt than when the artifact was made"
    if _digest(tokenizer.decode(ids)) != was["decoded"]:
        return "decodes the proof text's tokens to another text than when the artifact was made"
    if _vocabulary(tokenizer) != was["vocabulary"]:
        return "has other tokens, or other ids for them, than when the artifact was made"
    return ""


def _chat_differs(stored: dict[str, Any], template: ChatTemplate | None) -> str:
    was = stored["chat"]
    if was is None or template is None:
        return "there was none when the artifact was made" if was is None else "it is gone"
    if _renderings(template) != was["texts"]:
        return "writes a conversation otherwise than when the artifact was made"
    return (
        ""
        if _digest(template.source) == was["template"]
        else "is another than when the artifact was made"
    )


def _renderings(template: ChatTemplate) -> list[str | None]:
    """What the template makes of each conversation; None where it refuses it or fails."""
    fixed = template.with_date(datetime(2024, 7, 26))
    found: list[str | None] = []
    for messages in CONVERSATIONS:
        try:
            found.append(fixed.render(messages)[:SHOWN])
        except (UsageError, ArtifactError):
            found.append(None)
    return found


def _named(tokens: Tokens) -> dict[str, Any]:
    return {"bos": tokens.bos, "eos": list(tokens.eos), "pad": tokens.pad}


def _vocabulary(tokenizer: Tokenizer) -> str:
    return _digest(
        json.dumps(sorted(tokenizer.vocabulary().items(), key=lambda item: (item[1], item[0])))
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def is_record(stored: Any) -> bool:
    """Whether every part that compare_words reads has its type."""
    if not isinstance(stored, dict) or not isinstance(stored.get("tokens"), dict):
        return False
    tokenizer, chat = stored.get("tokenizer"), stored.get("chat")
    if tokenizer is not None:
        if not isinstance(tokenizer, dict) or not isinstance(tokenizer.get("proved"), bool):
            return False
        if not all(
            isinstance(tokenizer.get(name), str) for name in ("text", "decoded", "vocabulary")
        ):
            return False
        if not all(isinstance(tokenizer.get(name), list) for name in ("ids", "prompt")):
            return False
    if chat is not None:
        return (
            isinstance(chat, dict)
            and isinstance(chat.get("texts"), list)
            and isinstance(chat.get("template"), str)
        )
    return "tokenizer" in stored and "chat" in stored
