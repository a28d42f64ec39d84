"""The training objective: token ids in, summed loss out. Knows no optimizer and no data."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from gptx_models.gpt.model import GPT

IGNORED = -100  # a target that adds nothing to the loss; the default of torch's cross_entropy


class Objective(nn.Module):
    """A GPT and its loss in one module, for torch.compile, DDP and FSDP to wrap.

    (inputs, targets), each (B, S) int64 -> the cross-entropy, in nats, summed over all targets that
    are not IGNORED.

    masked: apply the head only to positions that are not IGNORED. This saves time if most targets
    are IGNORED.
    chunk: positions per call of the head. The logits of one chunk stay in the CPU's cache until the
    loss reads them: two and a half times as fast as all positions at once.
    """

    def __init__(self, gpt: GPT, *, masked: bool = False, chunk: int = 1024) -> None:
        super().__init__()
        self.gpt, self.masked, self.chunk = gpt, masked, chunk

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        hidden = self.gpt.hidden(inputs).flatten(0, 1)  # (B S, n_embd)
        targets = targets.flatten()  # (B S)
        if self.masked:
            counted = targets != IGNORED
            hidden, targets = hidden[counted], targets[counted]
        total = hidden.new_zeros((), dtype=hidden.dtype).float()
        for h, t in zip(hidden.split(self.chunk), targets.split(self.chunk)):
            total = total + F.cross_entropy(self.gpt.head(h).float(), t, reduction="sum")
        return total
