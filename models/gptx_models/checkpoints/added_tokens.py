"""Add the tokens that the files name to a tokenizer, and list them as tokenizer.json does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer

from gptx.errors import CheckpointError
from gptx_models.checkpoints.special_tokens import FLAGS, NamedTokens, special_in_order


def add_tokens(tokenizer: Tokenizer, tokens: NamedTokens, where: str) -> None:
    """Add the tokens that the tokenizer lacks, or has with other flags.

    The tokenizer chooses the ids: a token that it knows keeps its id, a new one is put behind the
    last. Raises CheckpointError if a file gives a token another id; `where` names the files.
    """
    tokenizer.add_tokens(_with_special_flag(_missing(tokenizer, tokens), tokens))
    for token_id, token in tokens.added.items():
        given = tokenizer.token_to_id(token.content)
        if given is not None and given != token_id:
            raise CheckpointError(
                f"{where}: the added token {token.content!r} has the id {token_id} in one file and"
                f" {given} in another, or ids are left out before it: the tokenizer's files do not"
                " belong together"
            )


def _missing(tokenizer: Tokenizer, tokens: NamedTokens) -> list[Any]:
    """The tokens to add: added tokens by their ids, then special tokens.

    A special token with flags replaces one of the same text, as in transformers.
    """
    there = tokenizer.get_added_tokens_decoder().values()
    known = {repr(token) for token in there}
    missing: list[Any] = [
        token for _, token in sorted(tokens.added.items()) if repr(token) not in known
    ]
    texts = {token.content for token in there} | {str(token) for token in missing}
    missing += [
        token
        for token in special_in_order(tokens.special)
        if isinstance(token, AddedToken) or token not in texts
    ]
    return missing


def _with_special_flag(missing: list[Any], tokens: NamedTokens) -> list[AddedToken]:
    """The tokens as AddedTokens, marked as special if a role or their own flag says so."""
    special = {str(token) for token in special_in_order(tokens.special)}
    flagged = []
    for token in missing:
        is_special = str(token) in special or (isinstance(token, AddedToken) and token.special)
        if isinstance(token, str):
            token = AddedToken(token, special=is_special)
        token.special = is_special
        flagged.append(token)
    return flagged


def beyond_vocabulary(tokenizer: Tokenizer, vocab_size: int | None) -> dict[int, str]:
    """The added tokens that the model has no rows for: text by id. None: no limit."""
    if vocab_size is None:
        return {}
    base = tokenizer.get_vocab_size(with_added_tokens=False)
    added = tokenizer.get_added_tokens_decoder().items()
    return {i: token.content for i, token in added if i >= vocab_size and i >= base}


def added_tokens_json(
    tokenizer: Tokenizer, raw: Mapping[str, Any], left_out: Mapping[int, str]
) -> list[dict[str, Any]]:
    """added_tokens for tokenizer.json, without the ids in `left_out`.

    raw: the tokenizer.json before the change. If no token changed, its own list is returned, so
    that the order stays.
    """
    made = [
        {"id": i, "content": token.content, **{flag: getattr(token, flag) for flag in FLAGS}}
        for i, token in sorted(tokenizer.get_added_tokens_decoder().items())
        if i not in left_out
    ]
    before = raw.get("added_tokens") or []
    return before if sorted(before, key=lambda token: token["id"]) == made else made
