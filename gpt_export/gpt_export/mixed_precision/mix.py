"""Make mixes: quantized GPTs whose layers differ in bits.

Each layer is rounded to several forms, and the loss of each smaller form is measured. The mixes
lead in steps from all layers in their smallest form to all in their largest; a step gives one layer
a larger form. In: the fp32 module and a calibration text. Out: the weights of the mix after any
number of steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from gpt_export.certificate.certify import Recording
from gpt_export.graph.layers import Quantized
from gpt_export.quantization.blocks import BlockWeights, StackedWeights, dequantize_blocks
from gpt_export.quantization.calibrate import round_to_each
from gpt_export.quantization.channels import ChannelWeights
from gpt_export.quantization.embeddings import Form, common_tokens, tables
from gpt_export.quantization.gptq import Grid
from gpt_export.quantization.offsets import OffsetWeights, dequantize_offsets
from gpt_export.quantization.recipes import (
    SCHEMES,
    pack,
    pack_layers,
    rotate_where_possible,
    scheme_name,
)
from gpt_export.quantization.sensitivity import cost_of, in_8_bits, sensitivities, with_weight
from gptx.parity.metrics import Figures, Tally
from gptx.progress import stage
from gptx.system.cpu import cpu_features
from gptx_models.gpt.model import GPT

Piece = dict[str, Quantized]  # weights that change form together: one layer, or all tables
TABLES = "head and embedding"
# The 4-bit forms, smallest first; the largest form of a layer is that of int8. A larger block has
# fewer scales and more error. If 128 does not divide n_in, a smaller block that does is taken
# (Grid.fitted).
SMALL = (Grid(4, 128, symmetric=False, scale_bits=8), Grid(4, 32, symmetric=False, scale_bits=8))


@dataclass(frozen=True)
class Mixes:
    """The forms of each piece (a layer by name, or TABLES), and the order in which pieces grow.

    forms: per form, smallest first: the weights of each piece. costs: per form: the mean KL if only
    this piece has this form instead of its largest. steps: (piece, index of its next form), the
    steps that save the most KL per byte first.
    """

    forms: list[dict[str, Piece]]
    costs: list[dict[str, float]]
    steps: list[tuple[str, int]]
    rotated: bool

    def taken(self, count: int) -> dict[str, int]:
        """Each piece's index of its form after the first `count` steps."""
        return {**dict.fromkeys(self.forms[0], 0), **dict(self.steps[:count])}

    def weights(self, count: int) -> dict[str, Quantized]:
        """Weights by module name after the first `count` steps."""
        pieces = (self.forms[form][name] for name, form in self.taken(count).items())
        return {name: weight for piece in pieces for name, weight in piece.items()}

    def predicted_kl(self, count: int) -> float:
        """Sum of the costs of the pieces, that is the KL above that of the largest mix."""
        return sum(self.costs[form][name] for name, form in self.taken(count).items())

    def name(self, count: int) -> str:
        """The mix in words, as "28 in 8 bits, 35 in 4/32, 57 in 4/128, rare tokens in 4/32"."""
        weights = self.weights(count)
        forms = [
            forms_of(weight)[0] for name, weight in weights.items() if name.startswith("blocks.")
        ]
        layers = Counter((bits, 0 if bits == 8 else block) for bits, block, _ in forms)
        finest_first = sorted(layers, key=lambda form: (-form[0], form[1]))
        said = [
            f"{layers[bits, block]} in {f'{bits}/{block}' if block else f'{bits} bits'}"
            for bits, block in finest_first
        ]
        if isinstance(weights["head"], StackedWeights):
            bits, block, _ = forms_of(weights["head"])[-1]
            said.append(f"rare tokens in {bits}/{block}")
        return ", ".join(said)


def make_mixes(gpt: GPT, windows: list[list[int]]) -> Mixes:
    """Round `gpt` to each form and measure their costs.

    windows: token ids of the calibration text. `gpt` is rewritten in place: rotated, and its layers
    rounded to their largest form.
    """
    rotated = rotate_where_possible(gpt)
    smaller, largest, moments = _round_layers(gpt, windows)
    small_tables, large_tables, tables_cost = _round_tables(gpt, windows, moments)
    forms = [{**single(form), TABLES: small_tables} for form in smaller]
    forms.append({**single(largest), TABLES: large_tables})
    costs = [
        {**_layer_costs(gpt, windows[0], form, grid), TABLES: tables_cost}
        for form, grid in zip(smaller, SMALL)
    ]
    costs.append(dict.fromkeys(forms[0], 0.0))
    return Mixes(forms, costs, by_worth(costs, forms), rotated)


def _round_layers(
    gpt: GPT, windows: list[list[int]]
) -> tuple[list[dict[str, Quantized]], dict[str, Quantized], Tensor]:
    """Layers in each form of SMALL; in their largest form; second moments of the head's input."""
    eight = SCHEMES[scheme_name("int8", cpu_features())]
    each, moments = round_to_each(
        gpt, windows, lambda n_in: (*(grid.fitted(n_in) for grid in SMALL), eight.grid_for(n_in))
    )
    finest = {name: rounded[-1] for name, rounded in each.items()}
    largest, _ = pack_layers(gpt, finest, windows[0], eight.activation_kl)
    smaller = [
        {name: pack(rounded[form]) for name, rounded in each.items()} for form in range(len(SMALL))
    ]
    return smaller, largest, moments


def _round_tables(
    gpt: GPT, windows: list[list[int]], moments: Tensor
) -> tuple[Piece, Piece, float]:
    """The tables with rare tokens in 4 bits; all in 8 bits; and the mean KL of the first.

    They are the same if nearly all tokens of the vocabulary are common.
    """
    large = tables(gpt, Form(moments=moments))
    common = common_tokens(windows, gpt.config.vocab_size)
    if common is None:
        return large, large, 0.0
    small = tables(gpt, Form(common=common, moments=moments))
    values = {name: values_of(weight) for name, weight in small.items()}
    return small, large, cost_of(gpt, windows[0], values)


def _layer_costs(
    gpt: GPT, window: list[int], form: Mapping[str, Quantized], grid: Grid
) -> dict[str, float]:
    """Mean KL, by layer, of having only this layer in `form`."""
    return sensitivities(
        gpt,
        window,
        lambda name: lambda linear: with_weight(linear, values_of(form[name])),
        f"Measuring layers in {grid.bits} bits, blocks of {grid.block} at most",
    )


def single(layers: Mapping[str, Quantized]) -> dict[str, Piece]:
    """One piece per layer."""
    return {name: {name: weight} for name, weight in layers.items()}


def by_worth(
    costs: Sequence[Mapping[str, float]], forms: Sequence[Mapping[str, Piece]]
) -> list[tuple[str, int]]:
    """Steps from the smallest forms to the largest, ordered by the KL that a step saves per byte.

    Forms off the lower convex hull of size and KL are skipped.
    """
    steps: list[tuple[float, str, int]] = []
    for name in forms[0]:
        sizes, kls = (
            [stored_bytes(form[name].values()) for form in forms],
            [cost[name] for cost in costs],
        )
        at = 0
        while worth := [
            ((kls[at] - kl) / (size - sizes[at]), name, form)
            for form, (size, kl) in enumerate(zip(sizes, kls))
            if size > sizes[at] and kl < kls[at]
        ]:
            steps.append(
                max(worth)
            )  # the steepest first, so a piece's later steps save less per byte
            at = steps[-1][2]
    # a stable sort: equal steps of a piece stay in order
    steps.sort(key=lambda step: -step[0])
    return [(name, form) for _, name, form in steps]


def values_of(weight: Quantized) -> Tensor:
    """Dequantize: the float32 matrix (n_out, n_in)."""
    match weight:
        case OffsetWeights():
            return torch.from_numpy(dequantize_offsets(weight))
        case BlockWeights():
            return torch.from_numpy(dequantize_blocks(weight))
        case StackedWeights():
            return torch.cat([values_of(part) for part in weight.parts])
        case ChannelWeights():
            return torch.from_numpy(weight.levels.T * weight.scales[:, None])


def forms_of(weight: Quantized) -> tuple[tuple[int, int, int], ...]:
    """(bits, block, activation bits) of each part of a weight. A block of 0 is a whole row."""
    match weight:
        case OffsetWeights():
            return forms_of(weight.blocks)
        case StackedWeights():
            return tuple(form for part in weight.parts for form in forms_of(part))
        case BlockWeights():
            return ((weight.bits, weight.block, weight.activation_bits),)
        case ChannelWeights():
            return ((8, 0, weight.activation_bits),)


def n_bytes(weight: Quantized) -> int:
    """Bytes that a weight takes in the artifact."""
    match weight:
        case OffsetWeights():
            return n_bytes(weight.blocks)
        case BlockWeights() | StackedWeights():
            return weight.nbytes
        case ChannelWeights():
            return weight.levels.nbytes + weight.scales.nbytes


def stored_bytes(weights: Iterable[Quantized]) -> int:
    """Bytes of several weights; an object that occurs twice (a tied embedding) counts once."""
    return sum(map(n_bytes, {id(weight): weight for weight in weights}.values()))


def mean_bits(layers: Sequence[Quantized]) -> float:
    """Mean bits per weight, without scales."""
    sizes = [weight.shape[0] * weight.shape[1] for weight in layers]
    return float(np.average([forms_of(weight)[0][0] for weight in layers], weights=sizes))


@torch.no_grad()
def measure(
    gpt: GPT, weights: Mapping[str, Quantized], recording: Recording, tokens: int, what: str
) -> Figures:
    """Compare `gpt` with quantized weights with the recorded reference, in PyTorch.

    Activations are rounded as the operators will do it. It runs whole windows of the evaluation
    text until at least `tokens` tokens are compared. what: label of the progress bar.
    """
    tally, seen = Tally(), 0
    with ExitStack() as changes, stage(what):
        for name, weight in weights.items():
            layer = gpt.get_submodule(name)
            assert isinstance(layer, nn.Linear | nn.Embedding)
            changes.enter_context(with_weight(layer, values_of(weight)))
            _, block, activation_bits = forms_of(weight)[0]
            if isinstance(layer, nn.Linear) and activation_bits == 8:
                changes.enter_context(in_8_bits(block)(layer))
        for window, expected in zip(recording.text.windows, recording.logits):
            if seen >= tokens:
                break
            following = [-1] * len(window) if gpt.config.n_class else [*window[1:], -1]
            tally.add(expected, gpt(torch.tensor([window]))[0].numpy(), np.array(following))
            seen += len(window)
    return tally.figures()
