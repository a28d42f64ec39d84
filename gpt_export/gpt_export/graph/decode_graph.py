"""Write the second graph of int8-fast, for runs with a single row (one token of one sequence).

In: the module that was traced for model.onnx. The second graph computes with the same int8 weights
by MatMulNBits, which is faster for one row than MatMulIntegerToFloat. No weight is stored twice:
each is read from model.onnx's data file, and ONNX Runtime folds the change of layout when it loads
the graph.
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

BLOCK = 128  # activations that share a scale; weights keep one scale per output channel


class ChannelsAsBlocks(nn.Module):
    """The product of a ChannelProduct, computed by MatMulNBits.

    Parameters keep their names and bytes, so that `save_beside` finds them in model.onnx's data
    file. ONNX Runtime holds each folded intermediate in memory while it loads. Reading the bytes as
    uint8 (blocks, block, n_out) leaves only two operations: one addition and one transposition.
    """

    def __init__(self, product: ChannelProduct, block: int):
        super().__init__()
        self.n_in, n_out = product.weight.shape
        weight = product.weight.view(torch.uint8).reshape(-1, block, n_out)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scales, self.bias = product.scales, product.bias

    def forward(self, x: Tensor) -> Tensor:
        # levels + 128, uint8 (n_out, blocks, block). The addition comes first, because the exporter
        # would fold the transposition of a stored tensor
        packed = (self.weight ^ 128).permute(2, 0, 1)
        scales = (self.scales * 127).unsqueeze(1).expand(-1, packed.shape[1])  # (n_out, blocks)
        return block_product(x, packed, scales, None, self.bias, bits=8, n_in=self.n_in)


def write_decode_graph(gpt: GPT, form: CacheForm, out: Path) -> None:
    """Write the decode graph of `gpt` to the artifact folder `out`, beside model.onnx.

    gpt: rewritten by graph_layers, and again here, in place. A layer whose n_in no block size
    divides keeps its ChannelProduct.
    """
    for name, product in [(n, m) for n, m in gpt.named_modules() if isinstance(m, ChannelProduct)]:
        n_in = product.weight.shape[0]
        block = fitting_block(n_in, BLOCK)
        if n_in % block == 0:
            gpt.set_submodule(name, ChannelsAsBlocks(product, block))
    save_beside(build_graph(gpt, form), out / DECODE)
