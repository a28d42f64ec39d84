"""Rotating the residual stream changes no logit, and spreads outlier channels."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from builders.configurations import config_of, pairwise, small_presets
from gpt_export.quantization.recipes import rotate_where_possible
from gptx_models.gpt.config import GPTConfig
from gptx_models.gpt.model import GPT

CONFIGS = {
    **small_presets(),
    **{f"pair {i}": config_of(choice) for i, choice in enumerate(pairwise())},
    "one value head for all": GPTConfig(
        vocab_size=97, n_ctx=64, n_layer=2, n_head=4, n_kv_head=1, n_embd=48
    ),
    "classes": GPTConfig(vocab_size=97, n_ctx=64, n_layer=2, n_head=4, n_embd=48, n_class=5),
    "width 3": GPTConfig(vocab_size=97, n_ctx=64, n_layer=1, n_head=1, n_embd=3, head_dim=2),
}
PRE = {name: config for name, config in CONFIGS.items() if config.norm_position == "pre"}
POST = {name: config for name, config in CONFIGS.items() if config.norm_position == "post"}
IDS = torch.randint(0, 97, (2, 20), generator=torch.Generator().manual_seed(1))


def random_gpt(config: GPTConfig) -> GPT:
    """A GPT with biases, gains and means far from their initial values."""
    torch.manual_seed(4)
    gpt = GPT(config).eval()
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter += torch.randn_like(parameter) * 0.2 + 0.1
    return gpt


@torch.no_grad()
def logits(gpt: GPT) -> Tensor:
    """Logits in float64, so that only the rounding of the weights to float32 remains."""
    return copy.deepcopy(gpt).double()(IDS)


@pytest.mark.parametrize("name", PRE)
def test_the_logits_stay(name: str) -> None:
    gpt = random_gpt(PRE[name])
    before = logits(gpt)
    assert rotate_where_possible(gpt)
    assert (before - logits(gpt)).abs().max() < 1e-5 * before.abs().max()


@pytest.mark.parametrize("name", POST)
def test_a_post_norm_model_is_left_as_it_is(name: str) -> None:
    gpt = random_gpt(POST[name])
    before = {name: value.clone() for name, value in gpt.state_dict().items()}
    assert not rotate_where_possible(gpt)
    assert all(torch.equal(value, before[name]) for name, value in gpt.state_dict().items())


def test_the_cover_has_every_kind_of_model() -> None:
    kinds = {
        (c.norm, c.position, c.n_kv_head < c.n_head, c.attn_bias, c.tied) for c in PRE.values()
    }
    for axis, values in enumerate(
        ({"layernorm", "rmsnorm"}, {"learned", "sinusoidal", "rope", "none"})
    ):
        assert {kind[axis] for kind in kinds} == values
    for axis in (2, 3, 4):
        assert {kind[axis] for kind in kinds} == {True, False}
    assert POST


@torch.no_grad()
def peak(gpt: GPT, module: Callable[[GPT], nn.Module], width: int) -> float:
    """Largest of each `width` inputs over their root mean square; the mean over positions."""
    read: list[Tensor] = []
    hook = module(gpt).register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].detach()))
    gpt(IDS)
    hook.remove()
    channels = read[0].unflatten(-1, (-1, width))
    return float((channels.abs().amax(-1) / channels.square().mean(-1).sqrt()).mean())


READERS: dict[str, Callable[[GPT], nn.Module]] = {
    "qkv": lambda gpt: gpt.layers[1].attn.qkv,
    "up": lambda gpt: gpt.layers[1].mlp.up,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["gpt2", "llama-style"])
def test_a_channel_that_stands_out_is_spread(name: str, reader: str) -> None:
    """An outlier channel of the embedding, or of a norm's gain."""
    gpt = random_gpt(CONFIGS[name])
    with torch.no_grad():
        gpt.wte.weight[:, 7] *= 100
        for norm in (gpt.layers[1].norm1, gpt.layers[1].norm2):
            norm.weight[7] = 30
    assert (
        peak(gpt, READERS[reader], 48) > 6
    )  # one channel has nearly all the energy: the maximum is sqrt(48) = 6.9
    rotate_where_possible(gpt)
    assert peak(gpt, READERS[reader], 48) < 4


@pytest.mark.parametrize("name", ["gpt2", "llama-style", "one value head for all"])
def test_a_channel_of_the_values_that_stands_out_is_spread_over_its_head(name: str) -> None:
    gpt = random_gpt(CONFIGS[name])
    size, values = gpt.config.head_dim, gpt.config.n_kv_head * gpt.config.head_dim
    for block in gpt.layers:
        with torch.no_grad():
            block.attn.qkv.weight[-values:][5::size] *= 100
    before = logits(gpt)
    for layer in (0, 1):
        assert peak(gpt, lambda gpt, at=layer: gpt.layers[at].attn.out, size) > 0.95 * size**0.5
    rotate_where_possible(gpt)
    for layer in (0, 1):
        assert peak(gpt, lambda gpt, at=layer: gpt.layers[at].attn.out, size) < 0.75 * size**0.5
    assert (before - logits(gpt)).abs().max() < 1e-5 * before.abs().max()
