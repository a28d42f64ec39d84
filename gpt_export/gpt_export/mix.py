"""A GPT whose layers differ in bits: each is rounded to 4 and to 8, what 4 cost it is measured, and mixes lie between.

In: the fp32 module and a calibration text. Out: for a number of layers in 8 bits, the weights of all. Which number is
wanted is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from gpt_export.blocks import BlockWeights, dequantize_blocks
from gpt_export.calibrate import linears, round_to_each
from gpt_export.certify import Recording
from gpt_export.channels import ChannelWeights
from gpt_export.layers import Quantized
from gpt_export.offsets import OffsetWeights, dequantize_offsets
from gpt_export.schemes import SCHEMES, pack, rotate_where_possible, scheme_name, tables, worth_exactness
from gpt_export.sensitivity import in_8_bits, sensitivities, with_weight
from gptx.compare import Figures, Tally
from gptx.cpu import cpu_features
from gptx.progress import stage
from gptx_models.model import GPT


@dataclass(frozen=True)
class Mixes:
    """small, large: each layer in 4 and in 8 bits; tables: head and embedding. costs: mean KL of 4 bits instead of 8 in
    one layer. order: the layers, those first that lose the most KL for each byte that 8 bits take more."""

    small: dict[str, Quantized]
    large: dict[str, Quantized]
    tables: dict[str, Quantized]
    costs: dict[str, float]
    order: list[str]
    rotated: bool

    def weights(self, count: int) -> dict[str, Quantized]:
        """Of the mix whose first `count` layers of the order have 8 bits."""
        large = set(self.order[:count])
        return {**{n: (self.large if n in large else self.small)[n] for n in self.small}, **self.tables}

    def predicted_kl(self, count: int) -> float:
        """What the layers in 4 bits add to a mix that has none."""
        return sum(self.costs[name] for name in self.order[count:])


def make_mixes(gpt: GPT, windows: list[list[int]]) -> Mixes:
    """Round `gpt` to both numbers of bits; it is rewritten in place, its layers to 8 bits."""
    rotated = rotate_where_possible(gpt)
    four, eight = SCHEMES["int4"], SCHEMES[scheme_name("int8", cpu_features())]
    each = round_to_each(gpt, windows, lambda name: (four.grid_of(name), eight.grid_of(name)))
    finest = {name: rounded[-1] for name, rounded in each.items()}
    blocks = {name: values.grid.block for name, values in finest.items() if values.whole}
    work = {name: values.levels.numel() for name, values in finest.items()}
    exact, _ = worth_exactness(gpt, windows[0], blocks, work, eight.activation_kl)
    large = {name: pack(values, exact=name in exact) for name, values in finest.items()}
    small = {name: pack(rounded[0]) for name, rounded in each.items()}
    del each, finest
    costs = sensitivities(
        gpt, windows[0], lambda name: lambda linear: with_weight(linear, values_of(small[name])), "Measuring layers"
    )
    return Mixes(small, large, tables(gpt, four.head), costs, by_worth(costs, small, large), rotated)


def by_worth(costs: Mapping[str, float], small: Mapping[str, Quantized], large: Mapping[str, Quantized]) -> list[str]:
    """The layers by the KL that a byte of 8 bits instead of 4 saves, the most first."""
    more = {name: max(n_bytes(large[name]) - n_bytes(small[name]), 1) for name in costs}
    return sorted(costs, key=lambda name: costs[name] / more[name], reverse=True)


def values_of(weight: Quantized) -> Tensor:
    """The float32 matrix (n_out, n_in) that a quantized weight stands for."""
    match weight:
        case OffsetWeights():
            return torch.from_numpy(dequantize_offsets(weight))
        case BlockWeights():
            return torch.from_numpy(dequantize_blocks(weight))
        case ChannelWeights():
            return torch.from_numpy(weight.levels.T * weight.scales[:, None])


def form_of(weight: Quantized) -> tuple[int, int, int]:
    """Bits, how many activations share a scale (0: a row), and the bits that each activation takes."""
    match weight:
        case OffsetWeights():
            return form_of(weight.blocks)
        case BlockWeights():
            return weight.bits, weight.block, weight.activation_bits
        case ChannelWeights():
            return 8, 0, weight.activation_bits


def n_bytes(weight: Quantized) -> int:
    match weight:
        case OffsetWeights():
            return n_bytes(weight.blocks)
        case BlockWeights():
            return weight.packed.nbytes + weight.scales.nbytes + (0 if weight.zeros is None else weight.zeros.nbytes)
        case ChannelWeights():
            return weight.levels.nbytes + weight.scales.nbytes


def mean_bits(layers: Sequence[Quantized]) -> float:
    sizes = [weight.shape[0] * weight.shape[1] for weight in layers]
    return float(np.average([form_of(weight)[0] for weight in layers], weights=sizes))


def artifact_bytes(gpt: GPT, weights: Mapping[str, Quantized], source_graph: int) -> int:
    """The files in onnx/ of `gpt` with such weights: exactly what the weights and the rest of the module take, and a
    generous estimate for the graph, made of the source's `source_graph` bytes."""
    rest = {id(p): p for name, p in gpt.named_parameters() if name.rpartition(".")[0] not in weights}
    others = sum(4 * tensor.numel() for tensor in [*rest.values(), *gpt.buffers()])
    distinct = {id(weight): weight for weight in weights.values()}.values()
    graph = int(1.4 * source_graph) + sum(map(node_bytes, weights.values()))
    return graph + others + sum(map(n_bytes, distinct))


def node_bytes(weight: Quantized) -> int:
    """What a product adds to a graph beside the node that takes the place of a MatMul."""
    offsets, channels = isinstance(weight, OffsetWeights), isinstance(weight, ChannelWeights)
    return 4500 * (form_of(weight)[2] == 16) + 1500 * offsets + 2500 * channels


def least_bytes(gpt: GPT) -> int:
    """What the quantized weights take at least, all layers in 4 bits."""
    scheme = SCHEMES["int4"]
    layers = {
        f"blocks.{i}.{part}": linear for i, block in enumerate(gpt.layers) for part, linear in linears(block).items()
    }
    total = scheme.head.fitted(gpt.config.n_embd).stored_bytes(*gpt.head.weight.shape)
    return total + sum(
        scheme.grid_of(name).fitted(linear.in_features).stored_bytes(*linear.weight.shape)
        for name, linear in layers.items()
    )


@torch.no_grad()
def measure(gpt: GPT, weights: Mapping[str, Quantized], recording: Recording, tokens: int, what: str) -> Figures:
    """`gpt` with quantized weights, and activations rounded as the operators will, beside the recorded reference on the
    first `tokens` of its text, or some more."""
    tally, seen = Tally(), 0
    with ExitStack() as changes, stage(what):
        for name, weight in weights.items():
            layer = gpt.get_submodule(name)
            assert isinstance(layer, nn.Linear | nn.Embedding)
            changes.enter_context(with_weight(layer, values_of(weight)))
            _, block, activation_bits = form_of(weight)
            if isinstance(layer, nn.Linear) and activation_bits == 8:
                changes.enter_context(in_8_bits(block)(layer))
        for window, expected in zip(recording.proof.windows, recording.logits):
            if seen >= tokens:
                break
            following = [-1] * len(window) if gpt.config.n_class else [*window[1:], -1]
            tally.add(expected, gpt(torch.tensor([window]))[0].numpy(), np.array(following))
            seen += len(window)
    return tally.figures()
