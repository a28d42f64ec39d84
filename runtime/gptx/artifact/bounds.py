"""How large a model may be that a file describes: checkpoints and artifacts keep to the same bounds.

A damaged or hostile number must not make names for a billion layers, or tables of terabytes. Real models are far below.
"""

from __future__ import annotations

from typing import Any

MOST_LAYERS = 10_000
LAYERS = ("n_layer", "num_hidden_layers", "block_count")  # what files call their number
MOST_OF_ANYTHING_ELSE = 2**24  # heads, widths, tokens of the vocabulary and of the context


def size_problem(name: str, value: Any, *, least: int = 1) -> str | None:
    """What is wrong with a size such as n_layer, in words; None where nothing is."""
    most = MOST_LAYERS if name.endswith(LAYERS) else MOST_OF_ANYTHING_ELSE
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        return f"{name} is {value!r:.80}, expected a {'positive ' if least else ''}whole number"
    if value > most:
        return f"{name} is {shown(value)}, expected at most {most:,}"
    return None


def shown(value: int) -> str:
    """A number in digits, or its size where it has too many: Python itself refuses to write more than 4,300."""
    return str(value) if value.bit_length() < 100 else f"a number of {value.bit_length():,} bits"
