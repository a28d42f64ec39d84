"""Which token ids begin, end and pad a text: bos_token_id, eos_token_id and pad_token_id.

Each of the three is taken from the first place that names it: generation_config.json, then config.json, then the
tokenizer's own token of that name. Null, a negative number (LLaMA 1 wrote -1) and an empty list name nothing. An id
beyond the model's vocabulary is left out with a line, since the model can never write it; where a place has no other,
the next place is asked. An id that the tokenizer does not know but the model has (the padding of a vocabulary) stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gptx.errors import CheckpointError

IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def resolve_ids(
    places: Sequence[tuple[str, Mapping[str, Any]]], vocab_size: int, tell: Callable[[str], None]
) -> dict[str, int | list[int]]:
    """The ids by name, without those that no place names. `places` are (how messages call it, its fields), in order.

    Several ends are a list, one is a number. Raises CheckpointError for a value that is no id.
    """
    found: dict[str, int | list[int]] = {}
    for name in IDS:
        for where, fields in places:
            ids = _within(
                token_ids(fields.get(name), f"{where}: {name}"),
                vocab_size,
                f"{where}: {name}",
                tell,
            )
            if not ids:
                continue
            if name != "eos_token_id" and len(ids) > 1:
                tell(f"{where}: {name} is {fields[name]}, and there can be one: {ids[0]} is taken")
            found[name] = ids if name == "eos_token_id" and len(ids) > 1 else ids[0]
            break
    return found


def token_ids(value: Any, what: str) -> list[int]:
    """The token ids in a field's value: a number, a list, or a list in a list, as transformers takes them.

    A whole number written as 2.0 is an id, as in transformers. Raises CheckpointError, naming the field as `what`.
    """
    ids = _flat(value)
    wrong = [one for one in ids if not _is_id(one)]
    if wrong:
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


def _within(ids: list[int], vocab_size: int, what: str, tell: Callable[[str], None]) -> list[int]:
    beyond = [token for token in ids if token >= vocab_size]
    if beyond:
        names = ", ".join(map(str, beyond))
        tell(f"{what} names {names}, beyond the vocabulary of {vocab_size:,} tokens: left out")
    return [token for token in ids if token < vocab_size]
