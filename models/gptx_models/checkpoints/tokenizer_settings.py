"""Write the settings of the files beside a tokenizer into its tokenizer.json.

transformers reads tokenizer.json together with tokenizer_config.json, special_tokens_map.json and
added_tokens.json. The result here needs tokenizer.json alone. The steps are those of transformers
4.57: PreTrainedTokenizerBase._from_pretrained and PreTrainedTokenizerFast.__init__.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Tokenizer

from gptx_models.checkpoints.added_tokens import add_tokens, added_tokens_json, beyond_vocabulary
from gptx_models.checkpoints.special_tokens import (
    TokenizerSettings,
    named_tokens,
    special_texts,
)
from gptx_models.checkpoints.tell import Tell
from gptx_models.checkpoints.tokenizer_classes import (
    CLASSES,
    TokenizerClass,
    class_name,
    default_tokens,
)
from gptx_models.checkpoints.tokenizer_parts import (
    parts_of,
    set_bert_normalizer,
    set_bos_eos,
    set_prefix_space,
)


@dataclass
class AppliedSettings:
    """A tokenizer with its settings applied.

    tokenizer_json: the text of tokenizer.json. special: the special tokens' texts by role.
    class_name: the tokenizer's class, None if it is unknown. class_settings: the class's own
    settings (add_bos_token, add_eos_token).
    """

    tokenizer_json: str
    special: dict[str, Any]
    class_name: str | None
    class_settings: dict[str, Any] = field(default_factory=dict)


def apply_settings(
    text: str,
    tokenizer: Tokenizer,
    settings: TokenizerSettings,
    vocab_size: int | None,
    tell: Tell,
) -> AppliedSettings:
    """Apply the files in `settings` to a tokenizer, in place.

    text: the text of its tokenizer.json. Added tokens with an id of `vocab_size` or more are left
    out, because the model has no rows for them; `tell` is called with a line for each. Raises
    CheckpointError.
    """
    name = _class_of(tokenizer, settings)
    class_ = CLASSES.get(name or "", TokenizerClass())
    parts_before = parts_of(tokenizer)
    tokens = named_tokens(tokenizer, settings, class_)
    add_tokens(tokenizer, tokens, settings.where)
    set_prefix_space(tokenizer, settings.config, is_llama=name == "LlamaTokenizer")
    if class_.bert:
        set_bert_normalizer(tokenizer, settings.config)
    beyond = beyond_vocabulary(tokenizer, vocab_size)
    for token in beyond.values():
        tell(
            f"{settings.where}: the added token {token!r} is beyond the model's {vocab_size:,}"
            " tokens: left out"
        )
    special = special_texts(tokens.special, set(beyond.values()))
    class_settings = _class_settings(class_, settings)
    if class_settings:
        _set_bos_eos(tokenizer, special, **class_settings)
    elif _gpt2_adds_bos(name, settings):
        _set_bos_eos(tokenizer, special, add_bos_token=True, add_eos_token=False)
    text = _tokenizer_json(text, tokenizer, parts_before, beyond)
    return AppliedSettings(text, special, name, class_settings)


def _class_of(tokenizer: Tokenizer, settings: TokenizerSettings) -> str | None:
    """The tokenizer class that a file names, else the class for the model_type, else None.

    The class for the model_type is taken only if the tokenizer has the special tokens of that
    class. (transformers always takes it, and adds missing special tokens with new ids at the end.
    Most models have no embedding rows for such ids.)
    """
    name = class_name(settings.config, settings.model)
    if any(isinstance(f.get("tokenizer_class"), str) for f in (settings.config, settings.model)):
        return name
    tokens = default_tokens(name).values()
    return name if all(tokenizer.token_to_id(token) is not None for token in tokens) else None


def _class_settings(class_: TokenizerClass, settings: TokenizerSettings) -> dict[str, Any]:
    """add_bos_token and add_eos_token of a class that obeys them; else {}."""
    if class_.adds_bos is None:
        return {}
    return {
        "add_bos_token": bool(settings.config.get("add_bos_token", class_.adds_bos)),
        "add_eos_token": bool(settings.config.get("add_eos_token", False)),
    }


def _gpt2_adds_bos(name: str | None, settings: TokenizerSettings) -> bool:
    """True if a GPT-2 class adds bos: it obeys add_bos_token only if read from merges.txt."""
    return (
        settings.from_merges
        and bool(settings.config.get("add_bos_token"))
        and name in ("GPT2Tokenizer", "CodeGenTokenizer")
    )


def _set_bos_eos(
    tokenizer: Tokenizer, special: dict[str, Any], *, add_bos_token: bool, add_eos_token: bool
) -> None:
    bos = special.get("bos_token") if add_bos_token else None
    eos = special.get("eos_token") if add_eos_token else None
    set_bos_eos(tokenizer, bos, eos)


def _tokenizer_json(
    text: str, tokenizer: Tokenizer, parts_before: dict[str, Any], left_out: dict[int, str]
) -> str:
    """The new tokenizer.json: `text` with the parts and added tokens that changed.

    Truncation and padding are taken out, as transformers switches both off before each call.
    """
    raw = json.loads(text)
    made = {
        **raw,
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens_json(tokenizer, raw, left_out),
    }
    made |= {
        part: state for part, state in parts_of(tokenizer).items() if state != parts_before[part]
    }
    if made == {"truncation": None, "padding": None, "added_tokens": [], **raw}:
        return text
    return json.dumps(made, ensure_ascii=False, separators=(",", ":"))
