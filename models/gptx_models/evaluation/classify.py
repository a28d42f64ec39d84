"""Classify with a GPT in PyTorch: by the log-probabilities of the labels, or by a head.

Token ids in and out. The runtime does the same with an artifact (gptx.tasks.classify).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gptx_models.evaluation.torch_generate import CachedGPT
from gptx_models.gpt.model import GPT


@torch.no_grad()
def label_scores(gpt: GPT, prompt: Sequence[int], labels: Sequence[Sequence[int]]) -> Tensor:
    """log P(label | prompt) of each label, summed over its tokens: (n_labels,), in nats.

    The model reads the prompt once. The labels then run as one batch on the prompt's KV cache.
    """
    model = CachedGPT(gpt.eval())
    first = model.next_logits(torch.tensor([prompt]))[0].log_softmax(-1)
    longest = max(map(len, labels))
    ids = torch.tensor([[*label, *([0] * (longest - len(label)))] for label in labels])  # (L, T)
    scores = first[ids[:, 0]]
    if longest > 1:
        model.repeat(len(labels))
        logits = gpt.head(model.hidden(ids[:, :-1])).float()
        rest = logits.log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)  # (L, T - 1)
        lengths = torch.tensor([len(label) for label in labels])
        is_token = torch.arange(1, longest) < lengths[:, None]  # False for padding
        scores = scores + (rest * is_token).sum(1)
    return scores


@torch.no_grad()
def class_of(gpt: GPT, text: Sequence[int]) -> int:
    """The index of the likeliest class, from the head's logits at the last token of `text`."""
    return int(CachedGPT(gpt.eval()).next_logits(torch.tensor([text]))[0].argmax())
