"""The second graph of int8-fast: a module as it was traced for model.onnx in, the graph for runs of a single row out.

It computes with the same weights, by MatMulNBits, which is the faster of the two kernels there. No weight is stored a
second time: every one is read out of model.onnx's file, and ONNX Runtime folds the change of layout when it loads. Knows
nothing of how weights were rounded.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpt_export.caches import CacheForm
from gpt_export.graph import build_graph
from gpt_export.layers import ChannelProduct, block_product
from gpt_export.rounding import fitting_block
from gptx.artifact import DECODE, GRAPH
from gptx_models.model import GPT

BLOCK = 128  # at one row 5 to 10% faster than 64; the scales are the channel's anyway


class ChannelsAsBlocks(nn.Module):
    """A ChannelProduct's weights as MatMulNBits reads them. Parameter names stay, and with them the stored tensors."""

    def __init__(self, product: ChannelProduct):
        super().__init__()
        self.weight, self.scales, self.bias = product.weight, product.scales, product.bias
        self.n_in, self.n_out = product.weight.shape

    def forward(self, x: Tensor) -> Tensor:
        block = fitting_block(self.n_in, BLOCK)
        # levels + 128 (n_in, n_out), and only then transposed: the exporter would fold that of a stored tensor
        levels = self.weight.to(torch.uint8) ^ 128
        if self.n_in % block:
            levels = F.pad(levels, (0, 0, 0, block - self.n_in % block), value=128)
        packed = levels.t().reshape(self.n_out, -1, block)
        scales = (self.scales * 127).unsqueeze(1).expand(-1, packed.shape[1])  # (n_out, blocks)
        return block_product(x, packed, scales, None, self.bias, bits=8, n_in=self.n_in)


def write_decode_graph(gpt: GPT, form: CacheForm, out: Path) -> None:
    """Write the decode graph of `gpt`, which was rewritten by graph_layers and traced, beside model.onnx in `out`."""
    for name, product in [(n, m) for n, m in gpt.named_modules() if isinstance(m, ChannelProduct)]:
        gpt.set_submodule(name, ChannelsAsBlocks(product))
    model = build_graph(gpt, form)
    share_weights(model, ir.load(out / GRAPH))
    ir.save(model, out / DECODE)  # what is left inside is small


def share_weights(model: ir.Model, stored: ir.Model) -> None:
    """Let the initializers of `model` be those of `stored` that have the same name and value, where they lie in a file."""
    for name, value in model.graph.initializers.items():
        there = stored.graph.initializers.get(name)
        if there is None or not isinstance(there.const_value, ir.ExternalTensor):
            continue
        assert value.const_value is not None
        if np.array_equal(there.const_value.numpy(), value.const_value.numpy()):
            value.const_value = there.const_value
