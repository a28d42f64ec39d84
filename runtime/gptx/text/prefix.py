"""The common prefix of two lists of tokens."""

from __future__ import annotations

from collections.abc import Sequence


def common_length(a: Sequence[int], b: Sequence[int], *most: int) -> int:
    """The length of the longest common prefix, but at most any of `most`.

    Compares slices, which is 20 times as fast as comparing token by token.
    """
    a, b = (one if isinstance(one, list) else list(one) for one in (a, b))
    low, high = 0, min(len(a), len(b), *most)
    if a[:high] == b[:high]:
        return high
    while high - low > 1:  # a[:low] == b[:low], a[:high] != b[:high]
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low
