"""Rounding in order and costs of layers, against plain runs of the whole model with hooks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div

from gpt_export.quantization.calibrate import round_layers
from gpt_export.quantization.gptq import Grid, round_gptq, round_nearest
from gpt_export.quantization.sensitivity import cost_of, in_8_bits, sensitivities, with_weight
from gptx.errors import UsageError
from gptx_models.gpt.config import GPTConfig
from gptx_models.gpt.model import GPT

PARTS = ("attn.qkv", "attn.out", "mlp.up", "mlp.down")
NAMES = [f"blocks.{index}.{part}" for index in (0, 1) for part in PARTS]
WINDOWS = [list(range(40)), list(range(10, 60))]
LONG = [int(token) for token in np.random.default_rng(2).integers(0, 97, 230)]


def random_gpt(position: str = "learned") -> GPT:
    torch.manual_seed(4)
    shape: dict[str, Any] = dict(vocab_size=97, n_ctx=256, n_layer=2, n_head=2, n_embd=32)
    config = GPTConfig(**shape, position=position)  # type: ignore[arg-type]
    gpt = GPT(config).eval()
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter += torch.randn_like(parameter) * 0.2
    return gpt


@torch.no_grad()
def read_by(gpt: GPT, name: str, windows: list[list[int]]) -> Tensor:
    """The inputs of a module over all windows, (positions, n_in)."""
    seen: list[Tensor] = []
    hook = gpt.get_submodule(name).register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0][0])
    )
    for window in windows:
        gpt(torch.tensor([window]))
    hook.remove()
    return torch.cat(seen)


@pytest.mark.parametrize("position", ["learned", "rope"])
def test_a_layer_is_rounded_on_what_the_rounded_blocks_before_it_give(position: str) -> None:
    gpt = random_gpt(position)
    plain, grid = copy.deepcopy(gpt), Grid(4, 16)
    rounded, moments = round_layers(gpt, WINDOWS, lambda n_in: grid)
    assert list(rounded) == NAMES
    for index in (0, 1):
        for name in NAMES[
            4 * index : 4 * index + 4
        ]:  # a block's layers read the activations of its exact layers
            read = read_by(plain, name, WINDOWS)
            expected = round_gptq(plain.get_parameter(f"{name}.weight"), read.T @ read, grid)
            assert (rounded[name].values() - expected.values()).abs().mean() < 1e-3
        for name in NAMES[4 * index : 4 * index + 4]:
            plain.get_parameter(f"{name}.weight").data = rounded[name].values()
            assert torch.equal(gpt.get_parameter(f"{name}.weight"), rounded[name].values())
    read = read_by(plain, "head", WINDOWS)
    torch.testing.assert_close(moments, read.T @ read)


def test_weights_that_give_no_numbers_are_named() -> None:
    gpt = random_gpt()
    gpt.layers[1].norm1.weight.data[3] = torch.nan
    with pytest.raises(UsageError, match="blocks.1.attn.qkv reads values that are not finite"):
        round_layers(gpt, WINDOWS, lambda n_in: Grid(8))


@torch.no_grad()
def kl(gpt: GPT, other: GPT, window: list[int], positions: slice) -> float:
    exact, changed = (
        model(torch.tensor([window]))[0, positions].double().log_softmax(-1)
        for model in (gpt, other)
    )
    return float(kl_div(changed, exact, log_target=True, reduction="none").sum(-1).mean())


def test_what_a_layer_costs_is_the_kl_of_the_model_with_it_alone_changed() -> None:
    """The KL is measured on every fourth of the first 192 tokens."""
    gpt = random_gpt()
    before = {name: value.clone() for name, value in gpt.state_dict().items()}
    coarse = {
        name: round_nearest(gpt.get_parameter(f"{name}.weight"), Grid(4, 16)).values()
        for name in NAMES
    }

    def change(name: str) -> Callable[[nn.Linear], object] | None:
        return None if name == NAMES[2] else lambda linear: with_weight(linear, coarse[name])

    found = sensitivities(gpt, LONG, change, "Measuring")  # type: ignore[arg-type]
    assert list(found) == [name for name in NAMES if name != NAMES[2]]
    for name, cost in found.items():
        other = copy.deepcopy(gpt)
        other.get_parameter(f"{name}.weight").data = coarse[name]
        assert cost == pytest.approx(kl(gpt, other, LONG[:192], slice(None, None, 4)), rel=1e-2)
    assert all(torch.equal(value, before[name]) for name, value in gpt.state_dict().items())


def test_what_tables_and_layers_cost_together() -> None:
    """The KL is measured on every position: a row of a table matters only where it is read."""
    gpt = random_gpt()
    changed = {
        name: gpt.get_parameter(f"{name}.weight") * 0.9 for name in ("wte", "head", NAMES[5])
    }
    other = copy.deepcopy(gpt)
    for name, weight in changed.items():
        other.get_submodule(name).weight = nn.Parameter(weight)
    assert cost_of(gpt, LONG, changed) == pytest.approx(kl(gpt, other, LONG, slice(None)), rel=1e-2)
    assert gpt.head.weight is gpt.wte.weight


@pytest.mark.parametrize(("n", "block"), [(32, 0), (32, 16), (40, 16)])
def test_activations_in_8_bits(n: int, block: int) -> None:
    """Each block of a row has a scale; the last block may be shorter; zeros stay zeros."""
    linear = nn.Linear(n, n, bias=False)
    linear.weight.data = torch.eye(n)
    x = torch.randn(5, n, generator=torch.Generator().manual_seed(1)) * torch.logspace(-3, 3, n)
    x[2, :16] = 0
    with in_8_bits(block)(linear):
        found = linear(x)
    for start in range(0, n, block or n):
        part = slice(start, start + (block or n))
        step = x[:, part].abs().max(1, keepdim=True).values / 127
        expected = torch.where(step > 0, (x[:, part] / step).round() * step, 0.0)
        torch.testing.assert_close(found[:, part], expected)
    assert torch.equal(linear(x), x)
