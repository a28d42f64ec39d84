"""Text from a GPT in PyTorch, for a look at how training goes. (What runs elsewhere is the exported model.)"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor

from gptx_models.data.pretraining import around
from gptx_models.gpt.model import GPT, Cached, Past


@torch.no_grad()
def sample(
    gpt: GPT,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    ends: Sequence[int],
    n_tokens: int = 60,
    temperature: float = 0.8,
) -> str:
    """The prompt and what goes on from it, drawn with a seed of its own: the training's random numbers stay as they are.

    The text ends at any of `ends`. An empty prompt begins as a document does: after the first of them, or with the
    tokenizer's bos token.
    """
    begin = around(tokenizer)[0]
    ids = [*begin, *tokenizer.encode(prompt, add_special_tokens=False).ids] or [*ends[:1]] or [0]
    kept, draw = list(ids), torch.Generator().manual_seed(0)
    gpt.eval()
    past: Past | None = None
    new = torch.tensor([ids])
    for _ in range(min(n_tokens, gpt.config.n_ctx - len(ids))):
        logits, past = _next(gpt, new, past)
        chosen = int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=draw))
        if chosen in ends:
            break
        kept.append(chosen)
        new = torch.tensor([[chosen]])
    return tokenizer.decode(kept)


def _next(gpt: GPT, new: Tensor, past: Past | None) -> tuple[Tensor, Past]:
    held = past[0][0].shape[2] if past else 0
    position_ids = torch.arange(held, held + new.shape[1])[None]
    attend = Cached(gpt, position_ids, past=past)
    return gpt(new, position_ids, attend)[0, -1].float(), attend.present
