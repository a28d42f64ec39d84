"""What each layer of the GPT becomes in the graph: the module is rewritten in place, then traced.

Linear weights turn into (n_in, n_out) initializers as MatMul reads them (a view: nothing is copied), the head into a
product that reads the embedding as it lies, quantized weights into the operators that unpack them. Parameter names stay.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gpt_export.graph.attention_forms import CacheForm
from gpt_export.quantization.blocks import BlockWeights, StackedWeights
from gpt_export.quantization.channels import ChannelWeights
from gpt_export.quantization.offsets import OffsetWeights
from gptx_models.gpt.model import GPT

Quantized = ChannelWeights | BlockWeights | StackedWeights | OffsetWeights

# Added to a float32 of up to 2^22 and taken off again, it leaves the nearest whole number, ties to even: two additions that
# ONNX Runtime vectorizes and spreads over threads, where DequantizeLinear takes one thread ten times as long
ROUNDER = 1.5 * 2**23


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

    FusedMatMul reads it transposed; a plain Transpose, for other loaders, is folded into a second copy when they load, and
    so is only for a tied weight: the head's own is stored (n_embd, vocab_size).
    """

    def __init__(self, linear: nn.Linear, *, fused: bool, tied: bool):
        super().__init__()
        self.bias, self.fused, self.turned = linear.bias, fused, not fused and not tied
        self.weight = (
            nn.Parameter(linear.weight.detach().t(), requires_grad=False)
            if self.turned
            else linear.weight
        )

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
            y = torch.matmul(x, self.weight if self.turned else self.weight.t())
        y = y if self.bias is None else y + self.bias
        return y.float()


class BlockProduct(nn.Module):
    """x W^T + b by com.microsoft MatMulNBits, with W in blocks of 8 or 4 bits, and the activations in 8, a scale a block.

    16 bits are two terms: x is first rounded as the operator would do it, which it then finds exact, and what that leaves
    is more rows of the same product.
    """

    def __init__(self, weight: BlockWeights, bias: nn.Parameter | None):
        super().__init__()
        self.bits, self.block, self.n_in = weight.bits, weight.block, weight.shape[1]
        self.activation_bits = weight.activation_bits
        self.weight = nn.Parameter(torch.from_numpy(weight.packed), requires_grad=False)
        self.scales = nn.Parameter(torch.from_numpy(weight.scales), requires_grad=False)
        steps = weight.scale_steps
        self.scale_steps = (
            None if steps is None else nn.Parameter(torch.from_numpy(steps), requires_grad=False)
        )
        self.zeros = (
            None
            if weight.zeros is None
            else nn.Parameter(torch.from_numpy(weight.zeros), requires_grad=False)
        )
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        if self.activation_bits != 16:
            return self.product(x, self.bias)
        blocks = _in_blocks(x, self.block)
        step = (
            blocks.abs().amax(-1, keepdim=True) / 127 + 1e-30
        )  # a block of zeros must not divide by zero
        coarse = _whole(blocks / step) * step
        stacked = torch.stack((coarse, blocks - coarse))
        terms = _reshape(stacked, [0, 0, 0, self.n_in], (*stacked.shape[:3], self.n_in))
        y = _sum_of_terms(self.product(terms, None))
        return y if self.bias is None else y + self.bias

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        scales, floats = _float_scales(self.scales, self.scale_steps), self.activation_bits == 32
        return block_product(
            x, self.weight, scales, self.zeros, bias, bits=self.bits, n_in=self.n_in, floats=floats
        )


def _float_scales(scales: Tensor, steps: Tensor | None) -> Tensor:
    """Those that are stored in 8 bits become floats once, when ONNX Runtime opens the graph."""
    return scales if steps is None else scales.float() * steps


def block_product(
    x: Tensor,
    weight: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    bias: Tensor | None,
    *,
    bits: int,
    n_in: int,
    floats: bool = False,
) -> Tensor:
    """MatMulNBits of a weight packed as BlockWeights says; with `floats` activations stay as they are."""
    n_out, _, packed = weight.shape
    inputs = [x, weight, scales, zeros, None, bias]
    while inputs[-1] is None:
        inputs.pop()
    return torch.onnx.ops.symbolic(
        "com.microsoft::MatMulNBits",
        inputs,
        {
            "K": n_in,
            "N": n_out,
            "bits": bits,
            "block_size": packed * 8 // bits,
            # 4: activations in 8 bits too, a scale a block of each row: the fast kernels, and no row of a batch or piece
            # of a prompt sees another's scale. 1: in fp32, which on a CPU only weights of 4 bits have a kernel for
            "accuracy_level": 1 if floats else 4,
        },
        dtype=x.dtype,
        shape=(*x.shape[:-1], n_out),
        version=1,
    )


class StackedProduct(nn.Module):
    """x W^T + b with W's rows in parts: a product each, put beside each other."""

    def __init__(self, weight: StackedWeights, bias: nn.Parameter | None):
        super().__init__()
        self.parts = nn.ModuleList(BlockProduct(part, None) for part in weight.parts)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([part(x) for part in self.parts], -1)
        return y if self.bias is None else y + self.bias


class OffsetProduct(nn.Module):
    """x W^T + b with W in blocks and an offset a block, which meets the sum of the block's activations (see offsets.py)."""

    def __init__(self, weight: OffsetWeights, bias: nn.Parameter | None):
        super().__init__()
        self.blocks, self.copies = BlockProduct(weight.blocks, bias), weight.copies

    def forward(self, x: Tensor) -> Tensor:
        sums = _in_blocks(x, self.blocks.block).sum(-1)  # (B, S, n_blocks)
        return self.blocks(torch.cat((x, *[sums] * self.copies), -1))


class ChannelProduct(nn.Module):
    """x W + b by com.microsoft MatMulIntegerToFloat: int8 weights (n_in, n_out) with a scale a channel, activations in 8
    bits with a scale a row, x = row * (q - 128) / 127.

    16 bits are two terms, x = row * (q1 - 128 + (q2 - 128) / 254) / 127; the second ones are more rows of the same product,
    so the weights are read once.
    """

    def __init__(self, weight: ChannelWeights, bias: nn.Parameter | None):
        super().__init__()
        self.n_out, self.activation_bits = weight.shape[0], weight.activation_bits
        self.weight = nn.Parameter(torch.from_numpy(weight.levels), requires_grad=False)
        self.scales = nn.Parameter(torch.from_numpy(weight.scales / 127), requires_grad=False)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        # a row of zeros is quantized from 0 / 0 to anything, and that times its scale of 0 is 0
        if self.activation_bits == 8:
            row = x.abs().amax(-1, keepdim=True)  # (B, S, 1)
            y = self.product(_quantize(x / row, 1 / 127), row)
        else:
            step = x.abs().amax(-1, keepdim=True) / 127
            x = x / step
            whole = _whole(x)
            q = torch.stack(
                (_quantize(whole, 1.0), _quantize(x - whole, 1 / 254))
            )  # (2, B, S, n_in)
            y = _sum_of_terms(
                self.product(q, step * torch.tensor([127.0, 127 / 254]).reshape(2, 1, 1, 1))
            )
        return y if self.bias is None else y + self.bias

    def product(self, q: Tensor, row: Tensor) -> Tensor:
        return torch.onnx.ops.symbolic(
            "com.microsoft::MatMulIntegerToFloat",
            [q, self.weight, row, self.scales, _middle()],
            {},
            dtype=row.dtype,
            shape=(*q.shape[:-1], self.n_out),
            version=1,
        )


def _in_blocks(x: Tensor, block: int) -> Tensor:
    """(B, S, n_in) -> (B, S, n_in / block, block)"""
    count = x.shape[-1] // block
    return _reshape(x, [0, 0, count, block], (*x.shape[:-1], count, block))


def _reshape(x: Tensor, sizes: list[int], shape: tuple[int, ...]) -> Tensor:
    """ONNX's, whose 0 keeps an axis: torch's names its length, and of what the head reads that is another in every run."""
    return torch.onnx.ops.symbolic(
        "Reshape", [x, torch.tensor(sizes)], {}, dtype=x.dtype, shape=shape, version=21
    )


def _whole(x: Tensor) -> Tensor:
    """x to the nearest whole number, of magnitudes up to 2^22."""
    return (x + ROUNDER) - ROUNDER


def _sum_of_terms(y: Tensor) -> Tensor:
    """(2, B, S, n_out) -> (B, S, n_out)"""
    coarse, fine = y.split(1)
    return (coarse + fine).squeeze(0)


def _middle() -> Tensor:
    """The zero point: uint8 times int8 is the pair that CPUs have fast kernels for; int8 times int8 is a plain loop."""
    return torch.tensor(128, dtype=torch.uint8)


def _quantize(x: Tensor, scale: float) -> Tensor:
    inputs = [x, torch.tensor(scale), _middle()]
    return torch.onnx.ops.symbolic(
        "QuantizeLinear", inputs, {}, dtype=torch.uint8, shape=x.shape, version=21
    )


class BlockEmbedding(nn.Module):
    """Rows of a symmetric table in blocks, unpacked by com.microsoft GatherBlockQuantized: a tied head's own initializers,
    or those of a product that is not computed."""

    def __init__(self, product: BlockProduct, dtype: torch.dtype):
        super().__init__()
        self.weight, self.scales, self.scale_steps = (
            product.weight,
            product.scales,
            product.scale_steps,
        )
        self.bits, self.block, self.dtype = product.bits, product.block, dtype

    def forward(self, ids: Tensor) -> Tensor:
        rows = torch.onnx.ops.symbolic(
            "com.microsoft::GatherBlockQuantized",
            [self.weight, ids, _float_scales(self.scales, self.scale_steps).unsqueeze(2)],
            {"gather_axis": 0, "quantize_axis": 2, "block_size": self.block, "bits": self.bits},
            dtype=self.dtype,
            shape=(*ids.shape, self.weight.shape[1], self.block),
            version=1,
        )
        return _reshape(rows, [0, 0, -1], (*ids.shape, self.weight.shape[1] * self.block))


class StackedEmbedding(nn.Module):
    """The same of a table whose rows are in two parts: of an id both are looked up, and one taken."""

    def __init__(self, product: StackedProduct, dtype: torch.dtype):
        super().__init__()
        self.common, self.rare = (BlockEmbedding(part, dtype) for part in product.parts)  # type: ignore[arg-type]

    def forward(self, ids: Tensor) -> Tensor:
        first_rare = self.common.weight.shape[0]
        common = self.common(ids.clamp(max=first_rare - 1))
        return torch.where(
            (ids < first_rare).unsqueeze(-1), common, self.rare((ids - first_rare).clamp(min=0))
        )


def quantized_product(weight: Quantized, bias: nn.Parameter | None) -> nn.Module:
    match weight:
        case ChannelWeights():
            return ChannelProduct(weight, bias)
        case BlockWeights():
            return BlockProduct(weight, bias)
        case StackedWeights():
            return StackedProduct(weight, bias)
        case OffsetWeights():
            return OffsetProduct(weight, bias)


def graph_layers(
    gpt: GPT, form: CacheForm, quantized: Mapping[str, Quantized] | None = None
) -> GPT:
    """Rewrite `gpt` in place for tracing in a cache form. `quantized`: module name -> its weight, of linears, and of the
    embedding; a tied embedding's is the head's own."""
    quantized = quantized or {}
    for name, linear in [(n, m) for n, m in gpt.named_modules() if isinstance(m, nn.Linear)]:
        if name in quantized:
            layer: nn.Module = quantized_product(quantized[name], linear.bias)
        else:
            tied = gpt.config.head_is_embedding
            layer = (
                Head(linear, fused=form != "growing", tied=tied)
                if name == "head"
                else Product(linear)
            )
        gpt.set_submodule(name, layer)
    for name, _ in [(n, m) for n, m in gpt.named_modules() if isinstance(m, nn.Embedding)]:
        if name not in quantized:
            continue
        tied = quantized[name] is quantized.get("head")
        product = gpt.head if tied else quantized_product(quantized[name], None)
        if isinstance(product, BlockProduct):
            gpt.set_submodule(name, BlockEmbedding(product, gpt.dtype))
        elif isinstance(product, StackedProduct):
            gpt.set_submodule(name, StackedEmbedding(product, gpt.dtype))
    return gpt
