"""The second graph of int8-fast: a module as it was traced for model.onnx in, the graph for runs of a single row out.

It computes with the same weights, by MatMulNBits, which is the faster of the two kernels there. No weight is stored a
second time: each is read out of model.onnx's file, and ONNX Runtime folds the change of layout when it loads. Knows
nothing of how weights were rounded.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from gpt_export.graph.attention_forms import CacheForm
from gpt_export.graph.build import build_graph, save_beside
from gpt_export.graph.layers import ChannelProduct, block_product
from gpt_export.quantization.gptq import fitting_block
from gptx.artifact.layout import DECODE
from gptx_models.gpt.model import GPT

BLOCK = 128  # of activations that share a scale, and of weights with their channel's


class ChannelsAsBlocks(nn.Module):
    """A ChannelProduct's weights by MatMulNBits. Parameters keep their names and bytes, so that their place is the same.

    What is folded is held twice while ONNX Runtime loads: the bytes are read as uint8 (blocks, block, n_out), which
    leaves one addition and one transposition.
    """

    def __init__(self, product: ChannelProduct, block: int):
        super().__init__()
        self.n_in, n_out = product.weight.shape
        weight = product.weight.view(torch.uint8).reshape(-1, block, n_out)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scales, self.bias = product.scales, product.bias

    def forward(self, x: Tensor) -> Tensor:
        # levels + 128 (n_out, blocks, block). The addition first: the exporter would fold a stored tensor's transposition
        packed = (self.weight ^ 128).permute(2, 0, 1)
        scales = (self.scales * 127).unsqueeze(1).expand(-1, packed.shape[1])  # (n_out, blocks)
        return block_product(x, packed, scales, None, self.bias, bits=8, n_in=self.n_in)


def write_decode_graph(gpt: GPT, form: CacheForm, out: Path) -> None:
    """Write the decode graph of `gpt`, which was rewritten by graph_layers and traced, beside model.onnx in `out`. A
    layer whose width no block divides stays as it is."""
    for name, product in [(n, m) for n, m in gpt.named_modules() if isinstance(m, ChannelProduct)]:
        n_in = product.weight.shape[0]
        block = fitting_block(n_in, BLOCK)
        if n_in % block == 0:
            gpt.set_submodule(name, ChannelsAsBlocks(product, block))
    save_beside(build_graph(gpt, form), out / DECODE)
