"""Generate token ids in PyTorch with a KV cache, for samples, summaries and proofs.

Knows no text. It serves to evaluate a model in training, and it is the reference of a certificate.
Exported models are run by gptx.generation.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import Tensor

from gptx_models.gpt.model import GPT, Cached, Past

NextLogits = Callable[[Tensor], Tensor]  # the new ids (B, S) -> logits of the last ones (B, V)
Choose = Callable[[Tensor], Tensor]  # logits (B, V) -> the next ids (B,)


@torch.no_grad()
def generate(
    next_logits: NextLogits,
    prompts: Tensor,
    *,
    n_tokens: int,
    ends: Collection[int] = (),
    choose: Choose | None = None,
) -> list[list[int]]:
    """Up to `n_tokens` new ids for each row of `prompts` (B, S) int64.

    next_logits: called with only the new ids; the model behind it keeps its own cache. ends: ids
    that end a row; they are not returned. choose: picks the next ids from the logits; None takes
    the likeliest.
    """
    rows: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(rows)
    new = prompts
    for _ in range(n_tokens):
        logits = next_logits(new)
        chosen = choose(logits) if choose else logits.argmax(-1)
        for at, token in enumerate(chosen.tolist()):
            ended[at] = ended[at] or token in ends
            if not ended[at]:
                rows[at].append(token)
        if all(ended):
            break
        new = chosen[:, None]
    return rows


class CachedGPT:
    """A GPT with the KV cache of the rows that it has read.

    attention_mask: (B, S) int64 of the first ids, 1 for tokens and 0 for padding on the left; None:
    no padding.
    """

    def __init__(self, gpt: GPT, attention_mask: Tensor | None = None) -> None:
        self.gpt, self.mask = gpt, attention_mask
        self.past: Past | None = None

    def hidden(self, new: Tensor) -> Tensor:
        """The input of the head for the new ids: (B, S) -> (B, S, n_embd)."""
        length = self.past[0][0].shape[2] if self.past else 0
        if self.mask is None:
            positions = torch.arange(length, length + new.shape[1]).expand(new.shape)
        else:
            if self.past:
                self.mask = torch.cat((self.mask, torch.ones_like(new)), dim=1)
            positions = (self.mask.cumsum(1) - 1).clamp(min=0)[:, length:]
        attend = Cached(self.gpt, positions, self.mask, self.past)
        hidden = self.gpt.hidden(new, positions, attend)
        self.past = attend.present
        return hidden

    def next_logits(self, new: Tensor) -> Tensor:
        """The logits after the last of the new ids: (B, S) -> (B, vocab_size), float32."""
        return self.gpt.head(self.hidden(new)[:, -1]).float()

    def repeat(self, n: int) -> None:
        """Repeat the cache of a single row for a batch of `n` rows."""
        if self.past:
            self.past = [(k.expand(n, -1, -1, -1), v.expand(n, -1, -1, -1)) for k, v in self.past]


def greedy(
    gpt: GPT,
    prompts: Sequence[Sequence[int]],
    *,
    n_tokens: int,
    ends: Collection[int] = (),
    batch_size: int = 8,
) -> Iterator[list[int]]:
    """Continue each prompt greedily; yield its new ids, without the end token.

    A batch stops before `n_tokens` if its longest prompt fills the context.
    """
    gpt.eval()
    for first in range(0, len(prompts), batch_size):
        batch = prompts[first : first + batch_size]
        ids, mask = _padded(batch)
        room = gpt.config.n_ctx - ids.shape[1]
        padded = min(map(len, batch)) < ids.shape[1]
        model = CachedGPT(gpt, mask if padded else None)
        yield from generate(model.next_logits, ids, n_tokens=min(n_tokens, room), ends=ends)


def _padded(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """The ids, padded on the left, and their attention mask: each (B, S) int64."""
    longest = max(map(len, prompts))
    padding = [longest - len(prompt) for prompt in prompts]
    ids = [[0] * pad + list(prompt) for pad, prompt in zip(padding, prompts)]
    mask = [[0] * pad + [1] * len(prompt) for pad, prompt in zip(padding, prompts)]
    return torch.tensor(ids), torch.tensor(mask)
