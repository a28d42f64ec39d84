"""The special and added tokens that the files beside a tokenizer name, by transformers' rules.

tokenizer_config.json with added_tokens_decoder is used alone. Without that field,
special_tokens_map.json wins over tokenizer_config.json, and added_tokens.json is read too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tokenizers import AddedToken, Tokenizer

from gptx.errors import CheckpointError
from gptx.text.tokenizer import ADDITIONAL, SPECIAL
from gptx_models.checkpoints.tokenizer_classes import TokenizerClass

FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")  # of an added token


@dataclass
class TokenizerSettings:
    """The files beside a tokenizer, parsed; {} for a file that is not there.

    where: their folder, for messages. config: tokenizer_config.json. special:
    special_tokens_map.json. added: added_tokens.json, id by text. model: the model's config.json.
    from_merges: the tokenizer was read from vocab.json and merges.txt.
    """

    where: str
    config: dict[str, Any] = field(default_factory=dict)
    special: dict[str, Any] = field(default_factory=dict)
    added: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    from_merges: bool = False


@dataclass
class NamedTokens:
    """The tokens that the files name, each as its text or as an AddedToken with its flags.

    special: the special tokens by role; the role additional_special_tokens has a list. added: the
    added tokens by id.
    """

    special: dict[str, Any]
    added: dict[int, AddedToken]


def named_tokens(
    tokenizer: Tokenizer, settings: TokenizerSettings, class_: TokenizerClass
) -> NamedTokens:
    """The tokens that the files, the tokenizer and its class name. Raises CheckpointError."""
    special = _from_config(tokenizer, settings, class_)
    decoder = settings.config.get("added_tokens_decoder")
    if decoder is not None:
        added = _from_decoder(
            decoder, f"{settings.where}/tokenizer_config.json: added_tokens_decoder"
        )
    else:
        special = _with_special_tokens_map(special, settings)
        texts = {str(token) for token in special_in_order(special)}
        added = _from_added_tokens(settings.added, texts, f"{settings.where}/added_tokens.json")
        added |= tokenizer.get_added_tokens_decoder()
    special[ADDITIONAL] = [*special[ADDITIONAL], *class_.additional]
    with_flags = {token.content: token for token in added.values()}
    special = {
        role: value if role == ADDITIONAL else with_flags.get(str(value), value)
        for role, value in special.items()
        if value is not None
    }
    return NamedTokens(special, added)


def special_in_order(special: Mapping[str, Any]) -> list[Any]:
    """The special tokens in the order in which transformers adds them, each once."""
    tokens = [special[role] for role in SPECIAL if special.get(role)]
    tokens += list(special.get(ADDITIONAL, ()))
    tokens += [token for role, token in special.items() if role not in (*SPECIAL, ADDITIONAL)]
    by_text: dict[str, Any] = {}
    for token in tokens:
        by_text.setdefault(str(token), token)
    return list(by_text.values())


def special_texts(special: Mapping[str, Any], left_out: set[str]) -> dict[str, Any]:
    """The special tokens by role as texts, without those in `left_out`."""
    roles = [*SPECIAL, *(role for role in special if role not in (*SPECIAL, ADDITIONAL))]
    texts: dict[str, Any] = {role: str(special[role]) for role in roles if special.get(role)}
    texts = {role: text for role, text in texts.items() if text not in left_out}
    more = [str(token) for token in special.get(ADDITIONAL, ()) if str(token) not in left_out]
    return {**texts, **({ADDITIONAL: list(dict.fromkeys(more))} if more else {})}


def _from_config(
    tokenizer: Tokenizer, settings: TokenizerSettings, class_: TokenizerClass
) -> dict[str, Any]:
    """The special tokens by role: tokenizer_config.json wins over tokenizer and class."""
    config, where = settings.config, f"{settings.where}/tokenizer_config.json"
    special: dict[str, Any] = dict(class_.special_tokens)
    if padding := tokenizer.padding:
        special.setdefault("pad_token", padding["pad_token"])
    for role in SPECIAL:
        if role in config:
            special[role] = _token(config[role], f"{where}: {role}")
    extra = config.get("extra_special_tokens")
    for role, value in extra.items() if isinstance(extra, dict) else ():
        special[role] = _token(value, f"{where}: extra_special_tokens[{role!r}]")
    special[ADDITIONAL] = _additional(config, where)
    return special


def _with_special_tokens_map(
    special: Mapping[str, Any], settings: TokenizerSettings
) -> dict[str, Any]:
    """`special` with the tokens of special_tokens_map.json.

    For a role in both, the file's token wins. The lists of additional special tokens are joined.
    """
    where = f"{settings.where}/special_tokens_map.json"
    found = {
        role: _token(settings.special[role], f"{where}: {role}")
        for role in SPECIAL
        if role in settings.special
    }
    additional = special[ADDITIONAL]
    texts = [str(token) for token in additional]
    more = [token for token in _additional(settings.special, where) if str(token) not in texts]
    return {**special, **found, ADDITIONAL: [*additional, *more]}


def _token(value: Any, what: str) -> str | AddedToken | None:
    """A token as a file writes it: its text, or an object with its text and flags."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, dict) and isinstance(value.get("content"), str):
        flags = {name: value[name] for name in FLAGS if isinstance(value.get(name), bool)}
        return AddedToken(value["content"], **flags)
    raise CheckpointError(f"{what} is {value!r:.80}, expected a token's text")


def _additional(fields: Mapping[str, Any], where: str) -> list[Any]:
    """The tokens of additional_special_tokens and of a list in extra_special_tokens.

    transformers 5 writes the list under the second name.
    """
    found: list[Any] = []
    for name in (ADDITIONAL, "extra_special_tokens"):
        values = fields.get(name)
        if isinstance(values, dict):
            continue
        if values is not None and not isinstance(values, list):
            raise CheckpointError(f"{where}: {name} is {values!r:.80}, expected a list of tokens")
        found += [_token(value, f"{where}: {name}") for value in values or []]
    return [token for token in found if token is not None]


def _from_decoder(values: Any, what: str) -> dict[int, AddedToken]:
    """The tokens of added_tokens_decoder, by id."""
    if not isinstance(values, dict):
        raise CheckpointError(f"{what} is {values!r:.80}, expected tokens by their ids")
    added = {}
    for key, value in values.items():
        token = _token(value, f"{what}[{key!r}]")
        if not isinstance(token, AddedToken) or not key.isdecimal():
            raise CheckpointError(
                f"{what}[{key!r}] is {value!r:.80}, expected a token under its id"
            )
        added[int(key)] = token
    return added


def _from_added_tokens(
    values: Mapping[str, Any], special: set[str], what: str
) -> dict[int, AddedToken]:
    """The tokens of added_tokens.json, by id. special: the texts of those that are special."""
    added = {}
    for text, token_id in values.items():
        if not isinstance(token_id, int) or isinstance(token_id, bool) or token_id < 0:
            raise CheckpointError(
                f"{what} gives {text!r:.80} the id {token_id!r:.80}, expected a number"
            )
        is_special = text in special
        added[token_id] = AddedToken(text, normalized=not is_special, special=is_special)
    return added
