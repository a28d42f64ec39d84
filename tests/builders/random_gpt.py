"""A GPT with random weights."""

from __future__ import annotations

import torch

from gptx_models.gpt.config import GPTConfig
from gptx_models.gpt.model import GPT


def random_gpt(config: GPTConfig, seed: int = 7) -> GPT:
    """A GPT with random biases, gains and scores too, so that an error in one of them shows."""
    torch.manual_seed(seed)
    gpt = GPT(config).eval()
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter += torch.randn_like(parameter) * 0.1
    return gpt
