"""The quantization schemes by name: what becomes of each kind of weight, and of the activations that meet it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gpt_export.graph.layers import Quantized
from gpt_export.quantization.blocks import BlockWeights, StackedWeights, pack_blocks
from gpt_export.quantization.calibrate import linears, round_layers
from gpt_export.quantization.channels import ChannelWeights, pack_channels
from gpt_export.quantization.embeddings import Form, common_tokens, kept_table, tables
from gpt_export.quantization.gptq import Grid, Rounded
from gpt_export.quantization.offsets import OffsetWeights, detect_q4_1
from gpt_export.quantization.rotate import rotate, why_not_rotated
from gpt_export.quantization.sensitivity import in_8_bits, sensitivities
from gptx.progress import note
from gptx_models.gpt.model import GPT


@dataclass(frozen=True)
class Scheme:
    """What the weights become. A grid without blocks is MatMulIntegerToFloat's (one scale a channel, activations with one a
    row), one with blocks MatMulNBits' (activations with one a block).

    grids: of the layers, each in the first whose blocks divide its width.
    activation_kl: what 8-bit activations may cost in all, in nats; the layers that matter most take more bits (see
    layers.py) until the rest costs no more. None: all take 8.
    kept_activation_kl: the same where the weights are what they were before, and lose nothing themselves.
    rare_in_4_bits: of head and embedding, the rows of tokens that are rare (see tables.py).
    decode: a second graph computes with the same weights where a single row runs (see decode.py).
    """

    bytes_per_weight: float
    grids: tuple[Grid, ...]
    activation_kl: float | None
    kept_activation_kl: float | None = None
    rare_in_4_bits: bool = False
    decode: bool = False

    def grid_for(self, n_in: int) -> Grid:
        """Of a layer that reads `n_in` values; where no grid's blocks divide them, the last one with smaller blocks."""
        return next(
            (grid for grid in self.grids if not grid.block or n_in % grid.block == 0),
            self.grids[-1].fitted(n_in),
        )


# MatMulNBits of 8 bits in blocks of 128 adds up a single row in another order than two or more (by 2e-6 on AVX-512, ORT
# 1.32); up to 64 the rows are equal to the bit, whatever their number (of 4 bits up to 32).
SCHEMES = {
    "int8-blocks": Scheme(
        bytes_per_weight=1.08,
        grids=(Grid(8, block=64),),
        activation_kl=0.0025,
    ),
    "int8-channels": Scheme(
        bytes_per_weight=1.04,
        grids=(Grid(8),),
        activation_kl=0.0025,
    ),
    "int4": Scheme(
        bytes_per_weight=0.72,
        grids=(Grid(4, block=32, symmetric=False, scale_bits=8),),
        activation_kl=None,  # the weights lose more
        kept_activation_kl=0.0005,
    ),
}

SCHEMES["int8-fast"] = replace(
    SCHEMES["int8-channels"],
    decode=True,
)
# Blocks of 128 have a faster kernel; of 64 not, so a width that takes no more keeps the accuracy of 32.
SCHEMES["int4-fast"] = replace(
    SCHEMES["int4"],
    bytes_per_weight=0.65,
    grids=(Grid(4, block=128, symmetric=False, scale_bits=8), *SCHEMES["int4"].grids),
    rare_in_4_bits=True,
)


def scheme_name(to: str, features: Sequence[str]) -> str:
    """The scheme of a precision on a CPU with such features (gptx.system.cpu).

    The reasons are in docs/explanation/cpu-kernels.md.

    AMX multiplies int8 matrices itself, and only MatMulIntegerToFloat makes use of it: channels prefill and decode faster
    there, blocks decode faster elsewhere. ARM without dot products has no kernel for 8-bit blocks: they would be unpacked
    for every token.
    """
    if to == "int8":
        bare_arm = "neon" in features and "dotprod" not in features
        return "int8-channels" if "amx_int8" in features or bare_arm else "int8-blocks"
    return to


@dataclass
class Quantization:
    """The weights by module name, ready for graph_layers, and how they came about."""

    weights: dict[str, Quantized]
    rotated: bool
    # KL by layer, of 8-bit activations; of a mix, of its smallest form
    sensitivity: dict[str, float] = field(default_factory=dict)


def quantize_weights(gpt: GPT, scheme: Scheme, windows: list[list[int]]) -> Quantization:
    """Rewrite `gpt` in place: rotated where it can be, and its layers rounded on the calibration text `windows`.

    Weights that were in 4 bits with offsets before stay what they are in a scheme of 4 bits: nothing is rotated or rounded.
    """
    if scheme.grids[0].bits == 4 and (kept := kept_offsets(gpt)):
        note("the weights were in 4 bits with offsets before, and are kept")
        blocks = {name: weight.blocks.block for name, weight in kept.items()}
        work = {name: weight.blocks.packed.size for name, weight in kept.items()}
        exact, costs = choose_activation_bits(
            gpt, windows[0], blocks, work, scheme.kept_activation_kl
        )
        kept = {name: weight.exact() if name in exact else weight for name, weight in kept.items()}
        # what the head reads is not rotated, and 8 bits of it cost a third of all
        head_and_embedding = tables(gpt, Form(kept_table(gpt), exact=True))
        return Quantization({**kept, **head_and_embedding}, rotated=False, sensitivity=costs)
    rotated = rotate_where_possible(gpt)
    rounded, moments = round_layers(gpt, windows, scheme.grid_for)
    weights, costs = pack_layers(gpt, rounded, windows[0], scheme.activation_kl)
    common = common_tokens(windows, gpt.config.vocab_size) if scheme.rare_in_4_bits else None
    return Quantization(
        {**weights, **tables(gpt, Form(common=common, moments=moments))},
        rotated=rotated,
        sensitivity=costs,
    )


def rotate_where_possible(gpt: GPT) -> bool:
    refusal = why_not_rotated(gpt.config)
    if refusal is None:
        rotate(gpt)
    else:
        note(f"the residual stream is not rotated, since {refusal}")
    return refusal is None


def kept_offsets(gpt: GPT) -> dict[str, OffsetWeights] | None:
    """Every layer's weight as the 4 bits and offsets that it was made of; None where one was not."""
    kept: dict[str, OffsetWeights] = {}
    for index, block in enumerate(gpt.layers):
        for part, linear in linears(block).items():
            found = detect_q4_1(linear.weight)
            if found is None:
                return None
            kept[f"blocks.{index}.{part}"] = found
    return kept


def pack_layers(
    gpt: GPT, rounded: Mapping[str, Rounded], window: list[int], allowed: float | None
) -> tuple[dict[str, Quantized], dict[str, float]]:
    """The weights of a module whose layers have these values, those packed for exact activations that are worth it; and
    what 8 bits cost each."""
    # a block that is not whole is padded by the operator, and has no second term
    blocks = {name: values.grid.block for name, values in rounded.items() if values.whole}
    work = {name: values.levels.numel() for name, values in rounded.items()}
    exact, costs = choose_activation_bits(gpt, window, blocks, work, allowed)
    return {name: pack(values, exact=name in exact) for name, values in rounded.items()}, costs


def choose_activation_bits(
    gpt: GPT,
    window: list[int],
    blocks: Mapping[str, int],
    work: Mapping[str, int],
    allowed: float | None,
) -> tuple[set[str], dict[str, float]]:
    """The layers whose activations take more than 8 bits, and what 8 cost each in mean KL. blocks: layer -> how many of a
    row's activations share a scale, 0: all."""
    if allowed is None:
        return set(), {}
    changes = {name: in_8_bits(block) for name, block in blocks.items()}
    costs = sensitivities(gpt, window, changes.get, "Measuring activations")
    return set(most_worth(costs, work, allowed)), costs


def most_worth(costs: Mapping[str, float], work: Mapping[str, int], allowed: float) -> list[str]:
    """The layers to compute exactly, those first that save the most KL for their work, until the others cost no more than
    `allowed` together."""
    chosen, left = [], sum(costs.values())
    for name in sorted(costs, key=lambda name: costs[name] / work[name], reverse=True):
        if left <= allowed:
            break
        chosen.append(name)
        left -= costs[name]
    return chosen


def pack(rounded: Rounded, *, exact: bool = False) -> Quantized:
    return (
        pack_blocks(rounded, exact=exact)
        if rounded.grid.block
        else pack_channels(rounded, exact=exact)
    )


def precision_of(scheme: str) -> str:
    """What gptx.json calls the precision, which decides the limits: a scheme's name up to its first hyphen."""
    return scheme.partition("-")[0]


def describe(name: str, made: Quantization) -> dict[str, Any]:
    """For gptx.json: the scheme with its parameters, and what each tensor became."""
    kept = any(isinstance(weight, OffsetWeights) for weight in made.weights.values())
    return {
        "scheme": name,
        "rotated": made.rotated,
        "rounding": "none: the source's own levels"
        if kept
        else "GPTQ on calibration text; positions, and an embedding that is not the head too, to nearest",
        "activations": "8 bits, a scale a row where weights have one a channel, else a scale a block; "
        "16 are two terms of 8, 32 are floats",
        "sensitivity": {key: float(f"{value:.3g}") for key, value in made.sensitivity.items()},
        "tensors": {key: _tensor(value) for key, value in made.weights.items()},
    }


def _tensor(weight: Quantized) -> dict[str, Any]:
    match weight:
        case OffsetWeights():
            return {**_tensor(weight.blocks), "offsets": True}
        case StackedWeights():
            return {"parts": [{"rows": part.shape[0], **_tensor(part)} for part in weight.parts]}
        case BlockWeights():
            symmetric = weight.zeros is None
            return {
                "bits": weight.bits,
                "block": weight.block,
                "symmetric": symmetric,
                "scale_bits": 32 if weight.scale_steps is None else 8,
                "activation_bits": weight.activation_bits,
            }
        case ChannelWeights():
            return {"bits": 8, "block": 0, "activation_bits": weight.activation_bits}
