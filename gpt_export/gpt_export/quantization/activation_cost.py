"""Measure what 8-bit activations cost, for all layers of a kind at once: four runs of the model.

sensitivity.py measures each layer, which takes as many runs as the model has layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

import torch
from torch import Tensor

from gpt_export.quantization.calibrate import linears
from gpt_export.quantization.sensitivity import TOKENS, in_8_bits
from gptx.progress import stage
from gptx_models.gpt.model import GPT


@torch.no_grad()
def cost_by_kind(gpt: GPT, window: list[int], blocks: Mapping[str, int]) -> dict[str, float]:
    """Mean KL in nats, by kind of layer, when the activations of all its layers have 8 bits.

    window: token ids. blocks: the number of activations that share a scale, by kind (attn.qkv,
    attn.out, mlp.up, mlp.down).
    """
    ids = torch.tensor([window[:TOKENS]])

    def log_probabilities() -> Tensor:
        return torch.log_softmax(gpt(ids)[0].double(), -1)

    expected = log_probabilities()
    costs = {}
    with stage("Measuring activations", total=len(blocks)) as advance:
        for kind, block in blocks.items():
            with ExitStack() as changes:
                for layer in gpt.layers:
                    changes.enter_context(in_8_bits(block)(linears(layer)[kind]))
                got = log_probabilities()
            costs[kind] = max(float((expected.exp() * (expected - got)).sum(-1).mean()), 0.0)
            advance(1)
    return costs
