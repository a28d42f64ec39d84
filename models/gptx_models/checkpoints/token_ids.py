"""The token ids that begin, end and pad a text: bos_token_id, eos_token_id and pad_token_id.

Each of the three is taken from the first place that states it: generation_config.json, then
config.json, then the tokenizer's own special token. Null, a negative number (LLaMA 1 has -1) and an
empty list state nothing.

An id beyond the model's vocabulary is left out, since the model can never generate it, and the
caller is told. If a place has only such ids, the next place is used. An id that the model has and
the tokenizer lacks is kept: a model's vocabulary may be padded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gptx.errors import CheckpointError
from gptx_models.checkpoints.tell import Tell

IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def resolve_ids(
    places: Sequence[tuple[str, Mapping[str, Any]]], vocab_size: int, tell: Tell
) -> dict[str, int | list[int]]:
    """The ids by name, without those that no place states.

    places: (its name for messages, its fields), in the order in which they are asked. vocab_size:
    the model's. An eos_token_id of several ids is a list. Raises CheckpointError for a value that
    is no token id.
    """
    found: dict[str, int | list[int]] = {}
    for name in IDS:
        for where, fields in places:
            what = f"{where}: {name}"
            ids = _in_vocabulary(token_ids(fields.get(name), what), vocab_size, what, tell)
            if not ids:
                continue
            if name != "eos_token_id" and len(ids) > 1:
                tell(f"{what} is {fields[name]}, and there can be one: {ids[0]} is taken")
            found[name] = ids if name == "eos_token_id" and len(ids) > 1 else ids[0]
            break
    return found


def token_ids(value: Any, what: str) -> list[int]:
    """The token ids in a field's value: a number, a list, or a list in a list.

    transformers takes the same forms, and a whole number written as 2.0. `what` names the field in
    messages. Raises CheckpointError for other values.
    """
    ids = _flat(value)
    if not all(_is_id(one) for one in ids):
        raise CheckpointError(
            f"{what} is {value!r:.80}, expected a token id, a list of them, null or -1"
        )
    return list(dict.fromkeys(int(one) for one in ids if one >= 0))


def _flat(value: Any) -> list[Any]:
    entries = value if isinstance(value, list) else [value]
    inner = [one for entry in entries for one in (entry if isinstance(entry, list) else [entry])]
    return [one for one in inner if one is not None]


def _is_id(value: Any) -> bool:
    if isinstance(value, float):
        return value.is_integer()
    return isinstance(value, int) and not isinstance(value, bool)


def _in_vocabulary(ids: list[int], vocab_size: int, what: str, tell: Tell) -> list[int]:
    """The ids below vocab_size; `tell` is called with a line about the others."""
    beyond = [token for token in ids if token >= vocab_size]
    if beyond:
        names = ", ".join(map(str, beyond))
        tell(f"{what} names {names}, beyond the vocabulary of {vocab_size:,} tokens: left out")
    return [token for token in ids if token < vocab_size]
