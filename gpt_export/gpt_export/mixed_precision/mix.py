"""A GPT whose layers differ in bits: each is rounded to several forms, what the smaller ones cost it is measured, and the
mixes lie between all in the smallest and all in the largest.

In: the fp32 module and a calibration text. Out: for a number of steps from one to the other, the weights of all. Which
number is wanted is not known here.
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
from gpt_export.quantization.calibrate import linears, round_to_each
from gpt_export.quantization.channels import ChannelWeights
from gpt_export.quantization.embeddings import RARE, TABLE, Form, common_tokens, tables
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

Piece = dict[str, Quantized]  # what takes a form together: a layer; the tables
TABLES = "head and embedding"
# The forms in 4 bits, smallest first: twice the block is half the scales, and a fifth more error. Where 128 do not divide
# a width, 64 do. The last form is int8's.
SMALL = (Grid(4, 128, symmetric=False, scale_bits=8), Grid(4, 32, symmetric=False, scale_bits=8))


@dataclass(frozen=True)
class Mixes:
    """forms: what each layer, and the tables together (TABLES), may be, smallest first. costs: for each form, the mean KL
    of it instead of the largest in one of them. steps: (which one, the form that it takes next), those first that save
    most KL for a byte."""

    forms: list[dict[str, Piece]]
    costs: list[dict[str, float]]
    steps: list[tuple[str, int]]
    rotated: bool

    def taken(self, count: int) -> dict[str, int]:
        """The form of each after the first `count` steps."""
        return {**dict.fromkeys(self.forms[0], 0), **dict(self.steps[:count])}

    def weights(self, count: int) -> dict[str, Quantized]:
        pieces = (self.forms[form][name] for name, form in self.taken(count).items())
        return {name: weight for piece in pieces for name, weight in piece.items()}

    def predicted_kl(self, count: int) -> float:
        """What the smaller forms add to a mix that has none."""
        return sum(self.costs[form][name] for name, form in self.taken(count).items())

    def name(self, count: int) -> str:
        """28 in 8 bits, 35 in 4/32, 57 in 4/128, rare tokens in 4/32: layers, and rows of the tables"""
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
    """Round `gpt` to each form; it is rewritten in place, its layers to the largest."""
    rotated = rotate_where_possible(gpt)
    eight = SCHEMES[scheme_name("int8", cpu_features())]
    each, moments = round_to_each(
        gpt, windows, lambda n_in: (*(grid.fitted(n_in) for grid in SMALL), eight.grid_for(n_in))
    )
    finest = {name: rounded[-1] for name, rounded in each.items()}
    largest, _ = pack_layers(gpt, finest, windows[0], eight.activation_kl)
    layers = [
        {name: pack(rounded[form]) for name, rounded in each.items()} for form in range(len(SMALL))
    ]
    del each, finest

    def cost(form: dict[str, Quantized], grid: Grid) -> dict[str, float]:
        what = f"Measuring layers in {grid.bits} bits, blocks of {grid.block} at most"
        return sensitivities(
            gpt,
            windows[0],
            lambda name: lambda linear: with_weight(linear, values_of(form[name])),
            what,
        )

    common = common_tokens(windows, gpt.config.vocab_size)
    large_tables = small_tables = tables(gpt, Form(moments=moments))
    cost_of_tables = 0.0
    if common is not None:
        small_tables = tables(gpt, Form(common=common, moments=moments))
        values = {name: values_of(weight) for name, weight in small_tables.items()}
        cost_of_tables = cost_of(gpt, windows[0], values)
    forms = [{**single(form), TABLES: small_tables} for form in layers]
    forms.append({**single(largest), TABLES: large_tables})
    costs = [{**cost(form, grid), TABLES: cost_of_tables} for form, grid in zip(layers, SMALL)]
    costs.append(dict.fromkeys(forms[0], 0.0))
    return Mixes(forms, costs, by_worth(costs, forms), rotated)


def single(layers: Mapping[str, Quantized]) -> dict[str, Piece]:
    return {name: {name: weight} for name, weight in layers.items()}


def by_worth(
    costs: Sequence[Mapping[str, float]], forms: Sequence[Mapping[str, Piece]]
) -> list[tuple[str, int]]:
    """The steps from the smallest form of every piece on, by the KL that one saves for a byte, the most first."""
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
            steps.append(max(worth))  # the steepest, and so what follows it is less steep
            at = steps[-1][2]
    steps.sort(key=lambda step: -step[0])  # those of a piece that are alike stay in their order
    return [(name, form) for _, name, form in steps]


def values_of(weight: Quantized) -> Tensor:
    """The float32 matrix (n_out, n_in) that a quantized weight stands for."""
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
    """Bits, how many activations share a scale (0: a row), and the bits that each activation takes; of each part."""
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
    match weight:
        case OffsetWeights():
            return n_bytes(weight.blocks)
        case BlockWeights() | StackedWeights():
            return weight.nbytes
        case ChannelWeights():
            return weight.levels.nbytes + weight.scales.nbytes


def stored_bytes(weights: Iterable[Quantized]) -> int:
    """Of weights that are stored once, however often they are named."""
    return sum(map(n_bytes, {id(weight): weight for weight in weights}.values()))


def mean_bits(layers: Sequence[Quantized]) -> float:
    sizes = [weight.shape[0] * weight.shape[1] for weight in layers]
    return float(np.average([forms_of(weight)[0][0] for weight in layers], weights=sizes))


def artifact_bytes(gpt: GPT, weights: Mapping[str, Quantized], source_graph: int) -> int:
    """The files in onnx/ of `gpt` with such weights: exactly what the weights and the rest of the module take, and a
    generous estimate for the graph, made of the source's `source_graph` bytes."""
    rest = {
        id(p): p for name, p in gpt.named_parameters() if name.rpartition(".")[0] not in weights
    }
    others = sum(4 * tensor.numel() for tensor in [*rest.values(), *gpt.buffers()])
    graph = int(1.4 * source_graph) + sum(map(node_bytes, weights.values()))
    return graph + others + stored_bytes(weights.values())


def node_bytes(weight: Quantized) -> int:
    """What a product adds to a graph beside the node that takes the place of a MatMul."""
    offsets, channels = isinstance(weight, OffsetWeights), isinstance(weight, ChannelWeights)
    if isinstance(weight, StackedWeights):
        return 2000 + sum(map(node_bytes, weight.parts))
    steps = isinstance(weight, BlockWeights) and weight.scale_steps is not None
    return 4500 * (forms_of(weight)[0][2] == 16) + 1500 * offsets + 2500 * channels + 400 * steps


def least_bytes(gpt: GPT, windows: list[list[int]], source_graph: int) -> int:
    """What artifact_bytes gives at least, all layers in their smallest forms; known before anything is rounded."""
    packed = {
        id(p)
        for one in gpt.modules()
        if isinstance(one, nn.Linear | nn.Embedding)
        for p in one.parameters()
    }
    rest = [p for p in gpt.parameters() if id(p) not in packed]
    others = int(1.4 * source_graph) + sum(4 * tensor.numel() for tensor in [*rest, *gpt.buffers()])
    layers = [linear for block in gpt.layers for linear in linears(block).values()]
    rows, width = gpt.head.weight.shape
    common = common_tokens(windows, gpt.config.vocab_size) or rows
    total = TABLE.fitted(width).stored_bytes(common, width) + RARE.fitted(width).stored_bytes(
        rows - common, width
    )
    return (
        others
        + total
        + sum(
            SMALL[0].fitted(linear.in_features).stored_bytes(*linear.weight.shape)
            for linear in layers
        )
    )


@torch.no_grad()
def measure(
    gpt: GPT, weights: Mapping[str, Quantized], recording: Recording, tokens: int, what: str
) -> Figures:
    """`gpt` with quantized weights, and activations rounded as the operators will, beside the recorded reference on the
    first `tokens` of its text, or some more."""
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
