"""Estimate the size of an artifact of a mix, before its graphs are written.

In: the module, the weights of the mix, the size of the source's graph file. Out: bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from torch import nn

from gpt_export.graph.layers import Quantized
from gpt_export.mixed_precision.mix import SMALL, forms_of, stored_bytes
from gpt_export.quantization.blocks import BlockWeights, StackedWeights
from gpt_export.quantization.calibrate import linears
from gpt_export.quantization.channels import ChannelWeights
from gpt_export.quantization.embeddings import RARE, TABLE, common_tokens
from gpt_export.quantization.offsets import OffsetWeights
from gpt_export.quantization.rotate import Turned
from gptx_models.gpt.model import GPT

PRODUCT = 1300  # bytes of the step graph for the node of a product and the names of its weights
INSIDE = 1024  # bytes; a smaller tensor is stored in each graph file, and not in the data file


def artifact_bytes(gpt: GPT, weights: Mapping[str, Quantized], source_graph: int) -> int:
    """Bytes of the files in onnx/ of `gpt` with these weights.

    Exact for weights and other parameters. For the graph files it is a generous estimate, that of
    model.onnx from the size of the source's, `source_graph` bytes.
    """
    rest = {
        id(p): p for name, p in gpt.named_parameters() if name.rpartition(".")[0] not in weights
    }
    tensors = [4 * tensor.numel() for tensor in [*rest.values(), *gpt.buffers()]]
    graph = int(1.4 * source_graph) + sum(map(node_bytes, weights.values()))
    graph += step_graph_bytes(weights, tensors)
    if isinstance(gpt.norm, Turned):  # the step graph has the rotation, in fp16
        graph += 2 * gpt.config.n_embd**2
    return graph + sum(tensors) + stored_bytes(weights.values())


def step_graph_bytes(weights: Mapping[str, Quantized], others: list[int]) -> int:
    """Bytes of the step graph: its nodes, and the small tensors that it stores itself.

    others: bytes of each tensor that is not a weight of the mix.
    """
    parts = [part for weight in weights.values() for part in _parts(weight)]
    arrays = [array.nbytes for part in parts for array in _arrays(part)]
    small = sum(size + 100 for size in [*arrays, *others] if size < INSIDE)
    return PRODUCT * len(parts) + 200 * len(others) + small


def _parts(weight: Quantized) -> list[Quantized]:
    return list(weight.parts) if isinstance(weight, StackedWeights) else [weight]


def _arrays(weight: Quantized) -> Iterator[np.ndarray]:
    weight = weight.blocks if isinstance(weight, OffsetWeights) else weight
    yield from (value for value in vars(weight).values() if isinstance(value, np.ndarray))


def node_bytes(weight: Quantized) -> int:
    """Bytes in the graph file for the nodes of a product, beside the one that replaces MatMul."""
    offsets, channels = isinstance(weight, OffsetWeights), isinstance(weight, ChannelWeights)
    if isinstance(weight, StackedWeights):
        return 2000 + sum(map(node_bytes, weight.parts))
    steps = isinstance(weight, BlockWeights) and weight.scale_steps is not None
    return 4500 * (forms_of(weight)[0][2] == 16) + 1500 * offsets + 2500 * channels + 400 * steps


def least_bytes(gpt: GPT, windows: list[list[int]], source_graph: int) -> int:
    """artifact_bytes of the smallest mix, computed from shapes before anything is rounded."""
    packed = {
        id(p)
        for one in gpt.modules()
        if isinstance(one, nn.Linear | nn.Embedding)
        for p in one.parameters()
    }
    rest = [p for p in gpt.parameters() if id(p) not in packed]
    tensors = [4 * tensor.numel() for tensor in [*rest, *gpt.buffers()]]
    layers = [linear for block in gpt.layers for linear in linears(block).values()]
    rows, width = gpt.head.weight.shape
    common = common_tokens(windows, gpt.config.vocab_size) or rows
    total = TABLE.fitted(width).stored_bytes(common, width) + RARE.fitted(width).stored_bytes(
        rows - common, width
    )
    total += sum(
        SMALL[0].fitted(linear.in_features).stored_bytes(*linear.weight.shape) for linear in layers
    )
    graphs = int(1.4 * source_graph) + PRODUCT * len(layers) + step_graph_bytes({}, tensors)
    return graphs + sum(tensors) + total
