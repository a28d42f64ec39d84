"""A record of how an artifact treats text: made by export, compared by gptx verify.

Logits do not show whether the tokenizer or the chat template was exchanged. So the record holds a
text with its token ids, a hash of the vocabulary, the special tokens, and what the chat template
renders for small conversations. Artifacts made by an older gptx have no record.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from gptx.artifact.manifest import Tokens
from gptx.errors import ArtifactError, UsageError
from gptx.parity.report import Check
from gptx.text.chat_template import ChatTemplate
from gptx.text.prefix import common_length
from gptx.text.tokenizer import Tokenizer

CONVERSATION = [
    {"role": "system", "content": "You answer in one short sentence."},
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": "And of Italy?"},
]
CONVERSATIONS = (CONVERSATION, CONVERSATION[1:], CONVERSATION[1:2])
SHOWN = 4000  # characters of a rendered conversation that are stored
PROMPT = 64  # characters of the text that are encoded as a prompt, with special tokens


def record_text(
    tokenizer: Tokenizer | None,
    template: ChatTemplate | None,
    tokens: Tokens,
    *,
    text: str | None,
    proof: Sequence[int],
) -> dict[str, Any]:
    """The record of an artifact, a JSON object with the parts tokenizer, tokens and chat.

    proof: token ids of the proof text. text: the proof text itself; None if only its token ids are
    known, then they are decoded.
    """
    found: dict[str, Any] = {
        "tokenizer": None,
        "tokens": _special_tokens(tokens),
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
            "decoded": _sha256(tokenizer.decode(ids)),
            "vocabulary": _vocabulary(tokenizer),
        }
    if template is not None:
        found["chat"] = {"template": _sha256(template.source), "texts": _renderings(template)}
    return found


def text_of(ids: Sequence[int], text: str, tokenizer: Tokenizer) -> str:
    """The beginning of `text` that `ids` encode, extended to the end of a word.

    It is extended further until its own token ids begin with `ids`. If they never do, all of `text`
    is returned.
    """
    end = len(tokenizer.decode(ids))
    while True:
        while end < len(text) and not text[end].isspace():
            end += 1
        found = tokenizer.encode(text[:end], add_special_tokens=False)
        if end >= len(text) or found[: len(ids)] == list(ids):
            return text[:end]
        end += 1 + len(text) // 50


def compare_record(
    stored: dict[str, Any] | None,
    tokenizer: Tokenizer | None,
    template: ChatTemplate | None,
    tokens: Tokens,
    proof: Sequence[int],
) -> list[Check]:
    """Compare each part of the record `stored` with the artifact as it is on this machine.

    proof: token ids of the proof text. Returns no checks where there is no record.
    """
    if stored is None:
        return []
    checks = [
        _check(
            "end of text",
            "the tokens that begin, end and pad a text are as they were",
            _tokens_problem(stored["tokens"], tokens),
        )
    ]
    if stored["tokenizer"] is not None or tokenizer is not None:
        good = "encodes and decodes the proof text as it did"
        problem = _tokenizer_problem(stored["tokenizer"], tokenizer, proof)
        checks.append(_check("tokenizer", good, problem))
    if stored["chat"] is not None or template is not None:
        good = "writes a conversation as it did"
        checks.append(_check("chat template", good, _chat_problem(stored["chat"], template)))
    return checks


def _check(name: str, good: str, problem: str) -> Check:
    return Check(name, problem or good, not problem)


def _tokens_problem(was: dict[str, Any], tokens: Tokens) -> str:
    wrong = [
        f"{name} {value}, and was {was.get(name)}"
        for name, value in _special_tokens(tokens).items()
        if value != was.get(name)
    ]
    if not wrong:
        return ""
    return f"gptx.json names other tokens than when the artifact was made: {'; '.join(wrong)}"


def _tokenizer_problem(
    was: dict[str, Any] | None, tokenizer: Tokenizer | None, proof: Sequence[int]
) -> str:
    if was is None or tokenizer is None:
        return "there was none when the artifact was made" if was is None else "it is gone"
    ids = tokenizer.encode(was["text"], add_special_tokens=False)
    if ids != was["ids"]:
        at = common_length(ids, was["ids"]) + 1
        return (
            f"encodes the proof text otherwise than when the artifact was made, from token {at} on"
        )
    shared = min(len(ids), len(proof))
    if was["proved"] and ids[:shared] != list(proof[:shared]):
        return "encodes the stored text to other tokens than those that the figures are about"
    if tokenizer.encode(was["text"][:PROMPT]) != was["prompt"]:
        return "adds other special tokens to a prompt than when the artifact was made"
    if _sha256(tokenizer.decode(ids)) != was["decoded"]:
        return "decodes the proof text's tokens to another text than when the artifact was made"
    if _vocabulary(tokenizer) != was["vocabulary"]:
        return "has other tokens, or other ids for them, than when the artifact was made"
    return ""


def _chat_problem(was: dict[str, Any] | None, template: ChatTemplate | None) -> str:
    if was is None or template is None:
        return "there was none when the artifact was made" if was is None else "it is gone"
    if _renderings(template) != was["texts"]:
        return "writes a conversation otherwise than when the artifact was made"
    if _sha256(template.source) != was["template"]:
        return "is another than when the artifact was made"
    return ""


def _renderings(template: ChatTemplate) -> list[str | None]:
    """The text that the template renders for each conversation; None where it raises an error."""
    fixed = template.with_date(datetime(2024, 7, 26))  # a template may write today's date
    found: list[str | None] = []
    for messages in CONVERSATIONS:
        try:
            found.append(fixed.render(messages)[:SHOWN])
        except (UsageError, ArtifactError):
            found.append(None)
    return found


def _special_tokens(tokens: Tokens) -> dict[str, Any]:
    return {"bos": tokens.bos, "eos": list(tokens.eos), "pad": tokens.pad}


def _vocabulary(tokenizer: Tokenizer) -> str:
    """A hash of all tokens with their ids."""
    by_id = sorted(tokenizer.vocabulary().items(), key=lambda item: (item[1], item[0]))
    return _sha256(json.dumps(by_id))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def is_record(stored: Any) -> bool:
    """True if a JSON value has every part that compare_record reads, each of its type."""
    if not isinstance(stored, dict) or not isinstance(stored.get("tokens"), dict):
        return False
    if "tokenizer" not in stored or "chat" not in stored:
        return False
    return _is_part(
        stored["tokenizer"],
        {"text": str, "decoded": str, "vocabulary": str, "proved": bool, "ids": list}
        | {"prompt": list},
    ) and _is_part(stored["chat"], {"template": str, "texts": list})


def _is_part(part: Any, types: dict[str, type]) -> bool:
    if part is None:
        return True
    return isinstance(part, dict) and all(
        isinstance(part.get(name), kind) for name, kind in types.items()
    )
