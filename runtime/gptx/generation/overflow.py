"""What remains of a text that has outgrown the model's context."""

from __future__ import annotations

from collections.abc import Sequence


def slide(tokens: Sequence[int], keep: int, n_ctx: int) -> list[int]:
    """The first `keep` tokens, and as many of the newest as fill half of the room behind them.

    The other half is for new tokens: the model reads all of these anew, so that it must not happen
    at every step. keep is below n_ctx.
    """
    newest = max((n_ctx - keep) // 2, 1)
    return [*tokens[:keep], *tokens[max(keep, len(tokens) - newest) :]]
