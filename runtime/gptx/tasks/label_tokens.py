"""The tokens by which a label is scored as the answer to a prompt."""

from __future__ import annotations

from collections.abc import Sequence

from gptx.errors import UsageError
from gptx.text.tokenizer import Tokenizer


def label_tokens(
    tokenizer: Tokenizer, prompt: str, labels: Sequence[str], end: Sequence[int] = ()
) -> list[tuple[int, ...]]:
    """The token ids of " " + label behind `prompt`, for each label.

    If one label begins with all tokens of another ("card lost" and "card"), the shorter one would
    always be at least as likely. Then each label is scored together with the tokens that end it:
    `end`, or without `end` the new line that follows the answer of an example.

    Raises UsageError for a label without tokens, and for two labels with the same tokens.
    """
    ids = [tuple(tokenizer.continuation(prompt, f" {label}")) for label in labels]
    for at, (label, tokens) in enumerate(zip(labels, ids)):
        if not tokens:
            raise UsageError(
                f"the label {label!r} has no tokens in this model's vocabulary: choose another word"
            )
        if tokens in ids[:at]:
            same = labels[ids.index(tokens)]
            raise UsageError(
                f"the labels {same!r} and {label!r} are the same tokens to this model:"
                " choose other words"
            )
    # In sorted order, a label that is the beginning of others is followed directly by one of them.
    ordered = sorted(ids)
    if any(after[: len(before)] == before for before, after in zip(ordered, ordered[1:])):
        endings = [
            end or tokenizer.continuation(f"{prompt} {label}", "\n\n")[:1] for label in labels
        ]
        ids = [(*tokens, *ending) for tokens, ending in zip(ids, endings)]
    return ids
