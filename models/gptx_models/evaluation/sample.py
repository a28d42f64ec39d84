"""Sample text from a GPT in PyTorch, to see how training goes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor

from gptx_models.data.pretraining import around
from gptx_models.evaluation.torch_generate import CachedGPT, generate
from gptx_models.gpt.model import GPT


def sample(
    gpt: GPT,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    ends: Sequence[int],
    n_tokens: int = 60,
    temperature: float = 0.8,
) -> str:
    """The prompt and a continuation of up to `n_tokens` tokens. Sets eval mode.

    ends: token ids that end the text. An empty prompt begins as a document does: with the bos token
    that the tokenizer adds, else after the first of `ends`, else with id 0.

    The random generator is the function's own, seeded with 0: training draws the same numbers with
    and without samples.
    """
    before, _ = around(tokenizer)
    ids = [*before, *tokenizer.encode(prompt, add_special_tokens=False).ids]
    ids = ids or list(ends[:1]) or [0]
    generator = torch.Generator().manual_seed(0)

    def choose(logits: Tensor) -> Tensor:
        probabilities = (logits / temperature).softmax(-1)
        return torch.multinomial(probabilities, 1, generator=generator)[:, 0]

    room = gpt.config.n_ctx - len(ids)
    [new] = generate(
        CachedGPT(gpt.eval()).next_logits,
        torch.tensor([ids]),
        n_tokens=min(n_tokens, room),
        ends=ends,
        choose=choose,
    )
    return tokenizer.decode([*ids, *new])
