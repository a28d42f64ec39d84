"""What each layer of the GPT becomes in the graph: the module is rewritten in place, then traced.

Linear weights turn into (n_in, n_out) initializers as MatMul reads them (a view: nothing is copied), the head into a
product that reads the embedding as it lies, quantized weights into the operators that unpack them. Parameter names stay.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gpt_export.blocks import BlockWeights
from gpt_export.caches import CacheForm
from gptx_models.model import GPT


class Product(nn.Module):
    """x W + b with W stored (n_in, n_out): plain MatMul, which ONNX Runtime packs at load."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().t(), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        y = torch.matmul(x, self.weight)
        return y if self.bias is None else y + self.bias


class Head(nn.Module):
    """Logits, always float32, from the weight (vocab_size, n_embd) as it lies: a tied embedding is stored once.

    FusedMatMul reads it transposed; a plain Transpose, for other loaders, is folded into a second copy when they load.
    """

    def __init__(self, linear: nn.Linear, *, fused: bool):
        super().__init__()
        self.weight, self.bias, self.fused = linear.weight, linear.bias, fused

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            y = torch.onnx.ops.symbolic(
                "com.microsoft::FusedMatMul",
                [x, self.weight],
                {"transB": 1},
                dtype=x.dtype,
                shape=(*x.shape[:-1], self.weight.shape[0]),
                version=1,
            )
        else:
            y = torch.matmul(x, self.weight.t())
        y = y if self.bias is None else y + self.bias
        return y.float()


class BlockProduct(nn.Module):
    """x W^T + b by com.microsoft MatMulNBits, with W in blocks of 8 or 4 bits."""

    def __init__(self, weight: BlockWeights, bias: nn.Parameter | None):
        super().__init__()
        self.bits, self.block, (self.n_out, self.n_in) = weight.bits, weight.block, weight.shape
        self.weight = nn.Parameter(torch.from_numpy(weight.packed), requires_grad=False)
        self.scales = nn.Parameter(torch.from_numpy(weight.scales), requires_grad=False)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        inputs = [x, self.weight, self.scales, None, None, self.bias]
        return torch.onnx.ops.symbolic(
            "com.microsoft::MatMulNBits",
            inputs if self.bias is not None else inputs[:3],
            # accuracy_level 4: activations in 8 bits too, a scale a block of each row: the fast kernels, and no row of a
            # batch or piece of a prompt sees another's scale
            {"K": self.n_in, "N": self.n_out, "bits": self.bits, "block_size": self.block, "accuracy_level": 4},
            dtype=x.dtype,
            shape=(*x.shape[:-1], self.n_out),
            version=1,
        )


class BlockEmbedding(nn.Module):
    """Rows of a table in blocks of 8 bits, unpacked by com.microsoft GatherBlockQuantized.

    weight uint8 (vocab_size, blocks, block), scales float32 (vocab_size, blocks): a tied head's own initializers.
    """

    def __init__(self, product: BlockProduct, dtype: torch.dtype):
        super().__init__()
        self.weight, self.scales, self.dtype = product.weight, product.scales, dtype

    def forward(self, ids: Tensor) -> Tensor:
        rows = torch.onnx.ops.symbolic(
            "com.microsoft::GatherBlockQuantized",
            [self.weight, ids, self.scales.unsqueeze(2)],
            {"gather_axis": 0, "quantize_axis": 2, "block_size": self.weight.shape[2], "bits": 8},
            dtype=self.dtype,
            shape=(*ids.shape, *self.weight.shape[1:]),
            version=1,
        )
        return rows.flatten(2)


def graph_layers(gpt: GPT, form: CacheForm, quantized: dict[str, BlockWeights] | None = None) -> GPT:
    """Rewrite `gpt` in place for tracing in a cache form. `quantized` maps parameter names to their blocks."""
    quantized = quantized or {}
    for name, linear in [(n, m) for n, m in gpt.named_modules() if isinstance(m, nn.Linear)]:
        weight = quantized.get(f"{name}.weight")
        if weight is not None:
            layer: nn.Module = BlockProduct(weight, linear.bias)
        else:
            layer = Head(linear, fused=form != "growing") if name == "head" else Product(linear)
        gpt.set_submodule(name, layer)
    table = quantized.get("wte.weight")
    if table is not None:
        product = (
            gpt.head
            if isinstance(gpt.head, BlockProduct) and gpt.config.head_is_embedding
            else BlockProduct(table, None)
        )
        gpt.set_submodule("wte", BlockEmbedding(product, gpt.dtype))
    return gpt
