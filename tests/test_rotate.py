"""Rotating the residual stream changes no logit, of any configuration that can be rotated, and takes its outliers away."""

from __future__ import annotations

import pytest
import torch

from configurations import config_of, pairwise, small_presets
from gpt_export.rotate import along_mean, orthogonal, rotate, why_not_rotated
from gptx_models.config import GPTConfig
from gptx_models.model import GPT

CONFIGS = {
    **small_presets(),
    **{f"pair {i}": config_of(choice) for i, choice in enumerate(pairwise())},
    "classes": GPTConfig(vocab_size=97, n_ctx=64, n_layer=2, n_head=4, n_embd=48, n_class=5),
}


def random_gpt(config: GPTConfig) -> GPT:
    torch.manual_seed(4)
    gpt = GPT(config).eval()
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter += torch.randn_like(parameter) * 0.2
    return gpt


@pytest.mark.parametrize("name", CONFIGS)
def test_the_logits_stay(name: str) -> None:
    gpt = random_gpt(CONFIGS[name])
    if why_not_rotated(gpt.config):
        assert gpt.config.norm_position == "post"
        return
    ids = torch.randint(0, 97, (2, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = gpt(ids)
        rotate(gpt)
        after = gpt(ids)
    assert (before - after).abs().max() < 1e-4 * before.abs().max()


def test_a_channel_that_stands_out_is_spread() -> None:
    gpt = random_gpt(CONFIGS["llama-style"])
    with torch.no_grad():
        gpt.wte.weight[:, 7] *= 100
        rotate(gpt)
        stream = gpt.embed(torch.arange(50)[None], torch.arange(50)[None])[0]
    assert (stream.abs().amax(1) / stream.square().mean(1).sqrt()).mean() < 4  # of 48 channels: 6.9 when one has it all


@pytest.mark.parametrize("width", [1, 2, 48, 65])
def test_matrices_are_orthogonal(width: int) -> None:
    q = orthogonal(width, 3)
    turned = along_mean(q)
    for matrix in (q, turned):
        assert torch.allclose(matrix @ matrix.T, torch.eye(width, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(turned[:, 0], torch.full((width,), width**-0.5, dtype=torch.float64))
