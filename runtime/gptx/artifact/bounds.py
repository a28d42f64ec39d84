"""The largest sizes that gptx accepts in a checkpoint or an artifact.

A damaged or hostile file could otherwise ask for names of a billion layers, or for tables of
terabytes. Real models are far below these bounds.
"""

from __future__ import annotations

from typing import Any

MOST_LAYERS = 10_000
# Names of fields that give the number of layers.
LAYERS = ("n_layer", "num_hidden_layers", "block_count")
MOST_OF_ANYTHING_ELSE = 2**24  # of heads, a width, the vocabulary, the context


def size_problem(name: str, value: Any, *, least: int = 1) -> str | None:
    """What is wrong with the size `name` (n_layer, vocab_size ...); None if nothing is."""
    most = MOST_LAYERS if name.endswith(LAYERS) else MOST_OF_ANYTHING_ELSE
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        return f"{name} is {value!r:.80}, expected a {'positive ' if least else ''}whole number"
    if value > most:
        return f"{name} is {digits(value)}, expected at most {most:,}"
    return None


def digits(value: int) -> str:
    """A number for a message: its digits, or for a huge number its count of bits.

    Python refuses to print integers of more than 4,300 digits.
    """
    return str(value) if value.bit_length() < 100 else f"a number of {value.bit_length():,} bits"
