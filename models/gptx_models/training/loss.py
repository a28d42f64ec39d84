"""The training objective: token ids in, the summed loss of what is to be trained out. Knows no optimizer and no data."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from gptx_models.gpt.model import GPT

IGNORED = -100  # a target that nothing is trained from, as in torch's cross_entropy


class Objective(nn.Module):
    """A GPT and its loss in one module, which is what torch.compile, DDP and FSDP wrap.

    (inputs, targets), each (B, S) int64 -> the sum, in nats, of the cross-entropy of all targets that are not IGNORED.
    The head is applied to `chunk` positions at a time, so that their logits are still in the cache when the loss
    reads them: on a CPU two and a half times as fast as all at once.
    """

    def __init__(self, gpt: GPT, *, masked: bool = False, chunk: int = 1024) -> None:
        super().__init__()
        self.gpt, self.masked, self.chunk = gpt, masked, chunk

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        hidden, targets = (
            self.gpt.hidden(inputs).flatten(0, 1),
            targets.flatten(),
        )  # (B S, n_embd), (B S)
        if self.masked:
            trained = targets != IGNORED
            hidden, targets = hidden[trained], targets[trained]
        total = hidden.new_zeros((), dtype=hidden.dtype).float()
        for h, t in zip(hidden.split(self.chunk), targets.split(self.chunk)):
            total = total + F.cross_entropy(self.gpt.head(h).float(), t, reduction="sum")
        return total
