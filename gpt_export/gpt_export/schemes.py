"""The quantization schemes by name: what becomes of each kind of weight, and of the activations that meet it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from gpt_export.blocks import BlockWeights, fitting_block, pack_blocks
from gpt_export.calibrate import round_layers
from gpt_export.channels import pack_channels
from gpt_export.layers import Quantized
from gpt_export.rotate import rotate, why_not_rotated
from gpt_export.rounding import Grid, Rounded, round_nearest
from gpt_export.sensitivity import by_row, sensitivities
from gptx.progress import note
from gptx_models.model import GPT


@dataclass(frozen=True)
class Scheme:
    """What the weights become. A grid without blocks is MatMulIntegerToFloat's (one scale a channel, activations with one a
    row), one with blocks MatMulNBits' (activations with one a block).

    parts: layer part -> grid, "*" for those not named. activation_kl: what the 8-bit activations of the former may cost in
    all, in nats; the layers that matter most take two terms (see ChannelProduct) until the rest costs no more.
    decode: a second graph computes with the same weights where a single row runs (see decode.py).
    """

    summary: str  # for --help: what it is, and what it costs
    bytes_per_weight: float
    parts: Mapping[str, Grid]
    head: Grid
    activation_kl: float = 0.0015
    decode: bool = False

    def grid_of(self, name: str) -> Grid:
        """name: blocks.3.mlp.down"""
        return self.parts.get(name.split(".", 2)[2], self.parts["*"])


# The head and embedding share one table. MatMulNBits in blocks of 128 adds up a single row in another order than two or
# more (by 2e-6 on AVX-512, ORT 1.32); up to 64 the rows are equal to the bit, whatever their number. A 4-bit head makes a
# GPT loop (onnxruntime issue 24384), so it keeps 8.
SCHEMES = {
    "int8": Scheme(
        summary="8 bits a channel, activations in 8 bits a token, 16 where they matter",
        bytes_per_weight=1.02,
        parts={"*": Grid(8)},
        head=Grid(8, block=64),
    ),
    "int4": Scheme(
        summary="4 bits in blocks of 32, embedding and head in 8",
        bytes_per_weight=0.72,
        parts={"*": Grid(4, block=32, symmetric=False)},
        head=Grid(8, block=64),
    ),
}

SCHEMES["int8-fast"] = replace(
    SCHEMES["int8"],
    summary="int8 with a second graph for single rows: faster decoding, twice the memory, files as small",
    decode=True,
)


@dataclass
class Quantization:
    """The weights by module name, ready for graph_layers, and how they came about."""

    weights: dict[str, Quantized]
    rotated: bool
    terms: dict[str, int] = field(default_factory=dict)  # of the activations that meet a layer, where not one
    sensitivity: dict[str, float] = field(default_factory=dict)  # mean KL of one term, by layer


def quantize_weights(gpt: GPT, scheme: Scheme, windows: list[list[int]]) -> Quantization:
    """Rewrite `gpt` in place: rotated where it can be, and its layers rounded on the calibration text `windows`."""
    refusal = why_not_rotated(gpt.config)
    if refusal is None:
        rotate(gpt)
    else:
        note(f"the residual stream is not rotated, since {refusal}")
    rounded = round_layers(gpt, windows, scheme.grid_of)
    channels = {name for name, values in rounded.items() if not values.grid.block}
    costs: dict[str, float] = {}
    if channels:
        costs = sensitivities(gpt, windows[0], lambda linear: by_row, "Measuring activations")
        costs = {name: costs[name] for name in channels}
    work = {name: values.levels.numel() for name, values in rounded.items()}
    doubled = worth_two_terms(costs, work, scheme.activation_kl)
    weights = {name: pack(values, 2 if name in doubled else 1) for name, values in rounded.items()}
    return Quantization({**weights, **tables(gpt, scheme.head)}, refusal is None, dict.fromkeys(doubled, 2), costs)


def worth_two_terms(costs: Mapping[str, float], work: Mapping[str, int], allowed: float) -> list[str]:
    """The layers that take a second term, those first that save the most KL for their work, until the others cost no more
    than `allowed` together."""
    chosen, left = [], sum(costs.values())
    for name in sorted(costs, key=lambda name: costs[name] / work[name], reverse=True):
        if left <= allowed:
            break
        chosen.append(name)
        left -= costs[name]
    return chosen


def pack(rounded: Rounded, terms: int) -> Quantized:
    return pack_blocks(rounded) if rounded.grid.block else pack_channels(rounded, terms)


def tables(gpt: GPT, grid: Grid) -> dict[str, Quantized]:
    """Head and embedding to the nearest level; one entry for both where they are tied. A width that the block does not
    divide takes the next smaller power of two that does, and an embedding for which none does stays as it is."""
    block = fitting_block(gpt.config.n_embd, grid.block)
    grid = Grid(grid.bits, block)
    made: dict[str, Quantized] = {"head": pack_blocks(round_nearest(gpt.head.weight, grid))}
    embedding = next(
        name for name, module in gpt.named_modules() if isinstance(module, nn.Embedding)
    )  # "wte", or in it
    if gpt.config.n_embd % block == 0:
        table = gpt.get_parameter(f"{embedding}.weight")
        made[embedding] = made["head"] if gpt.config.head_is_embedding else pack_blocks(round_nearest(table, grid))
    return made


def precision_of(scheme: str) -> str:
    """What gptx.json calls the precision, which decides the limits: a scheme's name up to its first hyphen."""
    return scheme.partition("-")[0]


def describe(name: str, made: Quantization) -> dict[str, Any]:
    """For gptx.json: the scheme with its parameters, and what each tensor became."""
    scheme = SCHEMES[name]
    return {
        "scheme": name,
        "rotated": made.rotated,
        "rounding": "GPTQ on calibration text; head and embedding to nearest",
        "activations": "8 bits: a scale a row where weights have one a channel, else a scale a block",
        "activation_kl": scheme.activation_kl,
        "sensitivity": {key: float(f"{value:.3g}") for key, value in made.sensitivity.items()},
        "tensors": {key: _tensor(value) for key, value in made.weights.items()},
    }


def _tensor(weight: Quantized) -> dict[str, Any]:
    if isinstance(weight, BlockWeights):
        return {"bits": weight.bits, "block": weight.block, "symmetric": weight.zeros is None}
    return {"bits": 8, "block": 0, "activation_terms": weight.terms}
