"""What a GPT answers to prompts, in PyTorch: the label it finds likeliest, the class its head names, its greedy text.

For a fine-tuning's figures before and after; token ids in and out. The runtime does the same with an artifact.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from gptx_models.gpt.model import GPT, Cached, Past

Ids = Sequence[int]


@torch.no_grad()
def label_scores(gpt: GPT, prompt: Ids, labels: Sequence[Ids]) -> Tensor:
    """log P(label | prompt) of each label's tokens, summed: (n_labels,), nats. The prompt is read once."""
    gpt.eval()
    logits, past = _feed(gpt, torch.tensor([prompt]), None)
    first = logits[0, -1].log_softmax(-1)
    longest = max(map(len, labels))
    ids = torch.tensor(
        [[*label, *([0] * (longest - len(label)))] for label in labels]
    )  # (L, T), padded on the right
    scores = first[ids[:, 0]]
    if longest > 1:
        many = [
            (k.expand(len(labels), -1, -1, -1), v.expand(len(labels), -1, -1, -1)) for k, v in past
        ]
        logits, _ = _feed(gpt, ids[:, :-1], many)
        rest = logits.log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)  # (L, T - 1)
        real = torch.arange(1, longest) < torch.tensor([len(label) for label in labels])[:, None]
        scores = scores + (rest * real).sum(1)
    return scores


@torch.no_grad()
def class_of(gpt: GPT, text: Ids) -> int:
    """The class that the head names after the last token."""
    return int(_feed(gpt.eval(), torch.tensor([text]), None)[0][0, -1].argmax())


def greedy(
    gpt: GPT, prompts: Sequence[Ids], *, n_tokens: int, ends: Iterable[int], batch_size: int = 8
) -> Iterator[list[int]]:
    """The likeliest tokens that go on from each prompt, without the one that ends them; batches padded on the left."""
    stops = frozenset(ends)
    for first in range(0, len(prompts), batch_size):
        yield from _greedy(gpt.eval(), prompts[first : first + batch_size], n_tokens, stops)


@torch.no_grad()
def _greedy(
    gpt: GPT, prompts: Sequence[Ids], n_tokens: int, stops: frozenset[int]
) -> list[list[int]]:
    longest = max(map(len, prompts))
    padding = [longest - len(prompt) for prompt in prompts]
    new = torch.tensor([[0] * pad + list(prompt) for pad, prompt in zip(padding, prompts)])
    mask = torch.tensor([[0] * pad + [1] * len(prompt) for pad, prompt in zip(padding, prompts)])
    past: Past | None = None
    kept: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    for _ in range(min(n_tokens, gpt.config.n_ctx - longest)):
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -new.shape[1] :]
        attend = Cached(gpt, positions, mask, past)
        chosen = gpt(new, positions, attend)[:, -1].argmax(-1)
        past = attend.present
        for row, token in enumerate(chosen.tolist()):
            ended[row] = ended[row] or token in stops
            if not ended[row]:
                kept[row].append(token)
        if all(ended):
            break
        new, mask = chosen[:, None], torch.cat((mask, torch.ones_like(mask[:, :1])), dim=1)
    return kept


def _feed(gpt: GPT, ids: Tensor, past: Past | None) -> tuple[Tensor, Past]:
    held = past[0][0].shape[2] if past else 0
    positions = torch.arange(held, held + ids.shape[1]).expand(ids.shape)
    attend = Cached(gpt, positions, past=past)
    return gpt(ids, positions, attend).float(), attend.present
