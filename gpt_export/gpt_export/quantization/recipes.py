"""The quantization schemes by name: the bits of each kind of weight and of its activations."""

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
    """How a recipe quantizes a model.

    bytes_per_weight: an estimate, for --dry-run. grids: for the linear layers; each takes the first
    grid whose blocks divide its n_in. A grid without blocks means MatMulIntegerToFloat (a scale per
    channel, activations with a scale per row); one with blocks means MatMulNBits (activations with
    a scale per block). activation_kl: the mean KL, in nats, that 8-bit activations may cost in
    total. The layers that cost most get more bits (see layers.py) until the others stay below it.
    None: all have 8 bits. kept_activation_kl: the same, only for weights that were 4-bit before
    (GGUF Q4_1) and are kept exactly. rare_in_4_bits: head and embedding have 4 bits in the rows of
    rare tokens (see embeddings.py). decode: there is a second graph for single rows, on the same
    weights (see decode_graph.py).
    """

    bytes_per_weight: float
    grids: tuple[Grid, ...]
    activation_kl: float | None
    kept_activation_kl: float | None = None
    rare_in_4_bits: bool = False
    decode: bool = False

    def grid_for(self, n_in: int) -> Grid:
        """The grid for a layer; if no blocks divide `n_in`, the last grid with smaller blocks."""
        return next(
            (grid for grid in self.grids if not grid.block or n_in % grid.block == 0),
            self.grids[-1].fitted(n_in),
        )


# MatMulNBits of 8 bits in blocks of 128 adds up a single row in another order than two or more (by
# 2e-6 on AVX-512, ORT 1.32); up to 64 the rows are equal to the bit, whatever their number (of 4
# bits up to 32).
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
        activation_kl=None,  # rounding the weights loses more
        kept_activation_kl=0.0005,
    ),
}

SCHEMES["int8-fast"] = replace(
    SCHEMES["int8-channels"],
    decode=True,
)
# Blocks of 128 have a faster kernel, blocks of 64 do not. So widths that 128 does not divide have
# blocks of 32.
SCHEMES["int4-fast"] = replace(
    SCHEMES["int4"],
    bytes_per_weight=0.65,
    grids=(Grid(4, block=128, symmetric=False, scale_bits=8), *SCHEMES["int4"].grids),
    rare_in_4_bits=True,
)


def scheme_name(to: str, features: Sequence[str]) -> str:
    """The scheme of a recipe on a CPU with these features; see docs/explanation/cpu-kernels.md.

    Only `int8` depends on the CPU. AMX multiplies int8 matrices, and only MatMulIntegerToFloat uses
    it, so int8-channels is faster there. Elsewhere int8-blocks decodes faster, except on ARM
    without dot products: it has no kernel for 8-bit blocks and would unpack them for every token.
    """
    if to == "int8":
        bare_arm = "neon" in features and "dotprod" not in features
        return "int8-channels" if "amx_int8" in features or bare_arm else "int8-blocks"
    return to


@dataclass
class Quantization:
    """Quantized weights by module name, for graph_layers, and facts about them for gptx.json."""

    weights: dict[str, Quantized]
    rotated: bool
    # mean KL by layer: of 8-bit activations or, for a mix, of the layer's smallest form
    sensitivity: dict[str, float] = field(default_factory=dict)


def quantize_weights(gpt: GPT, scheme: Scheme, windows: list[list[int]]) -> Quantization:
    """Quantize `gpt` by a scheme. It is rewritten in place: rotated, and its layers rounded.

    windows: token ids of the calibration text. In a scheme of 4 bits, weights that were 4-bit with
    offsets before (GGUF Q4_1) are kept exactly instead, and nothing is rotated or rounded.
    """
    if scheme.grids[0].bits == 4 and (kept := kept_offsets(gpt)):
        note("the weights were in 4 bits with offsets before, and are kept")
        return _keep_weights(gpt, kept, windows[0], scheme.kept_activation_kl)
    rotated = rotate_where_possible(gpt)
    rounded, moments = round_layers(gpt, windows, scheme.grid_for)
    weights, costs = pack_layers(gpt, rounded, windows[0], scheme.activation_kl)
    common = common_tokens(windows, gpt.config.vocab_size) if scheme.rare_in_4_bits else None
    return Quantization(
        {**weights, **tables(gpt, Form(common=common, moments=moments))},
        rotated=rotated,
        sensitivity=costs,
    )


def _keep_weights(
    gpt: GPT, kept: dict[str, OffsetWeights], window: list[int], allowed: float | None
) -> Quantization:
    """Keep the layers' own 4-bit weights. allowed: mean KL that 8-bit activations may cost."""
    blocks = {name: weight.blocks.block for name, weight in kept.items()}
    work = {name: weight.blocks.packed.size for name, weight in kept.items()}
    exact, costs = choose_activation_bits(gpt, window, blocks, work, allowed)
    layers = {name: weight.exact() if name in exact else weight for name, weight in kept.items()}
    # without rotation, 8-bit activations of the head alone would cost a third of the total loss
    head_and_embedding = tables(gpt, Form(kept_table(gpt), exact=True))
    return Quantization({**layers, **head_and_embedding}, rotated=False, sensitivity=costs)


def rotate_where_possible(gpt: GPT) -> bool:
    """Rotate the residual stream if the architecture allows it; True if it did."""
    refusal = why_not_rotated(gpt.config)
    if refusal is None:
        rotate(gpt)
    else:
        note(f"the residual stream is not rotated, since {refusal}")
    return refusal is None


def kept_offsets(gpt: GPT) -> dict[str, OffsetWeights] | None:
    """The 4-bit weights and offsets of all layers (see detect_q4_1); None if any layer has none."""
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
    """Pack rounded layers, choosing for each the bits of its activations.

    window: token ids to measure on. allowed: mean KL in nats that 8-bit activations may cost in
    total; None: all have 8 bits. Returns the weights, and by layer the mean KL that 8 bits cost.
    """
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
    """Measure 8-bit activations; returns the layers that need more bits, and each layer's mean KL.

    blocks: number of activations that share a scale, by layer; 0: a whole row. work: number of
    weights, by layer. allowed: as in pack_layers.
    """
    if allowed is None:
        return set(), {}
    changes = {name: in_8_bits(block) for name, block in blocks.items()}
    costs = sensitivities(gpt, window, changes.get, "Measuring activations")
    return set(most_worth(costs, work, allowed)), costs


def most_worth(costs: Mapping[str, float], work: Mapping[str, int], allowed: float) -> list[str]:
    """Layers to compute with more bits, in order of KL saved per work.

    As many as are needed for the costs of the other layers to sum to at most `allowed`.
    """
    chosen, left = [], sum(costs.values())
    for name in sorted(costs, key=lambda name: costs[name] / work[name], reverse=True):
        if left <= allowed:
            break
        chosen.append(name)
        left -= costs[name]
    return chosen


def pack(rounded: Rounded, *, exact: bool = False) -> Quantized:
    """Lay out a rounded matrix for its operator. exact: activations with more than 8 bits."""
    return (
        pack_blocks(rounded, exact=exact)
        if rounded.grid.block
        else pack_channels(rounded, exact=exact)
    )


def precision_of(scheme: str) -> str:
    """`precision` of gptx.json, which selects the limits: a scheme's name up to its hyphen."""
    return scheme.partition("-")[0]


def describe(name: str, made: Quantization) -> dict[str, Any]:
    """`quantization` of gptx.json: the scheme, its parameters, and the bits of each tensor."""
    kept = any(isinstance(weight, OffsetWeights) for weight in made.weights.values())
    return {
        "scheme": name,
        "rotated": made.rotated,
        "rounding": "none: the source's own levels"
        if kept
        else "GPTQ on calibration text; positions, and an embedding that is not the head too,"
        " to nearest",
        "activations": "8 bits, a scale a row where weights have one a channel,"
        " else a scale a block; 16 are two terms of 8, 32 are floats",
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
