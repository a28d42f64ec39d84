"""Linears and embeddings that only native operators compute: they hold tensors, and trace nothing.

build_step_graph reads them. A layer of MatMulNBits (see layers.py) has fewer forms of blocks.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from gpt_export.quantization.native_blocks import NativeBlocks, NativeFloats, NativeRows
from gptx_models.gpt.model import GPT

Native = NativeBlocks | NativeFloats | NativeRows
# Of a weight in blocks, beside its levels: fields of NativeBlocks, parameters of the layers here.
TENSORS = ("scales", "scale_steps", "offsets", "offset_steps", "table")


class _Stored(nn.Module):
    """The tensors of a weight; see NativeBlocks."""

    weight: nn.Parameter
    scales: nn.Parameter | None
    scale_steps: nn.Parameter | None
    offsets: nn.Parameter | None
    offset_steps: nn.Parameter | None
    table: nn.Parameter | None
    block: int  # 0: floats


class NativeProduct(_Stored):
    """x W^T + b with W in one form: blocks, or floats of 16 or 32 bits."""

    def __init__(self, weight: NativeBlocks | NativeFloats, bias: Tensor | None):
        super().__init__()
        self.n_out, self.n_in = weight.shape
        self.bits, self.block, self.activation_bits = 0, 0, 32
        for name in TENSORS:
            setattr(self, name, None)
        if isinstance(weight, NativeFloats):
            self.weight = _fixed(weight.values)
            self.bits = 8 * weight.values.itemsize
        else:
            self.weight = _fixed(weight.packed)
            self.bits, self.block = weight.bits, weight.block
            self.activation_bits = weight.activation_bits
            for name in TENSORS:
                array = getattr(weight, name)
                setattr(self, name, None if array is None else _fixed(array))
        self.bias = bias if bias is None else nn.Parameter(bias, requires_grad=False)


class NativeParts(nn.Module):
    """x W^T + b with W's rows in parts of several forms; each part has its part of the bias."""

    def __init__(self, weight: NativeRows, bias: Tensor | None):
        super().__init__()
        rows = [part.shape[0] for part in weight.parts]
        biases = bias.split(rows) if bias is not None else [None] * len(rows)
        self.parts = nn.ModuleList(map(NativeProduct, weight.parts, biases))


class NativeEmbedding(_Stored):
    """Rows of a table in one form. product: holds the table; the head itself if it is tied."""

    def __init__(self, product: NativeProduct):
        super().__init__()
        self.block, self.weight = product.block, product.weight
        for name in TENSORS:
            setattr(self, name, getattr(product, name))


def native_layers(gpt: GPT, weights: Mapping[str, Native]) -> GPT:
    """Rewrite `gpt` in place for build_step_graph; returns it.

    weights: of linears and embeddings by module name; a tied embedding has the same object as the
    head. Layers without an entry stay as they are.
    """
    for name, weight in weights.items():
        layer = gpt.get_submodule(name)
        if isinstance(layer, nn.Linear):
            gpt.set_submodule(name, _product(weight, layer.bias))
    for name, weight in weights.items():
        if isinstance(gpt.get_submodule(name), nn.Embedding):
            product = gpt.head if weight is weights.get("head") else _product(weight, None)
            assert isinstance(product, NativeProduct)  # one tensor of the file
            gpt.set_submodule(name, NativeEmbedding(product))
    return gpt


def _product(weight: Native, bias: Tensor | None) -> nn.Module:
    bias = None if bias is None else bias.detach()
    if isinstance(weight, NativeRows):
        return NativeParts(weight, bias)
    return NativeProduct(weight, bias)


def _fixed(array: np.ndarray) -> nn.Parameter:
    return nn.Parameter(torch.from_numpy(np.ascontiguousarray(array)), requires_grad=False)
