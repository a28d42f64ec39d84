"""Find where the end of a row of tokens stands a second time. Token ids only."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def places_behind(text: np.ndarray, tokens: np.ndarray) -> Iterator[np.ndarray]:
    """For n = 1, 2, ...: the places in `text` behind the n tokens in which `tokens` ends.

    Ends when there are none.
    """
    places = np.flatnonzero(text[:-1] == tokens[-1]) + 1 if len(tokens) else np.empty(0, np.int64)
    n = 1
    while len(places):
        yield places
        n += 1
        places = places[places >= n]
        places = places[text[places - n] == tokens[-n]] if n <= len(tokens) else places[:0]
