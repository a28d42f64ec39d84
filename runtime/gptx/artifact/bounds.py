"""The largest sizes that gptx accepts in a checkpoint or an artifact.

A damaged or hostile file could otherwise ask for names of a billion layers, or for tables of
terabytes. Real models are far below these bounds.
"""

from __future__ import annotations

from typing import Any

MOST_LAYERS = 10_000
LAYERS = ("n_layer", "num_hidden_layers", "block_count")  # names of the number of layers
MOST_OF_ANYTHING_ELSE = 2**24  # heads, widths, tokens of the vocabulary and of the context


def size_problem(name: str, value: Any, *, least: int = 1) -> str | None:
    """What is wrong with the size `name` (n_layer, vocab_size ...); None if nothing is."""
    most = MOST_LAYERS if name.endswith(LAYERS) else MOST_OF_ANYTHING_ELSE
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        return f"{name} is {value!r:.80}, expected a {'positive ' if least else ''}whole number"
    if value > most:
        return f"{name} is {digits(value)}, expected at most {most:,}"
    return None


def digits(value: int) -> str:
    """A number for a message: in digits, or if it is huge, how many bits it has.

    Python refuses to write more than 4,300 digits.
    """
    return str(value) if value.bit_length() < 100 else f"a number of {value.bit_length():,} bits"
