"""Replace a GPT's linears and embeddings by modules that trace to the operators of the graph.

A linear's weight becomes (n_in, n_out), as MatMul reads it (a view: nothing is copied). The head
reads the embedding without transposing it. Quantized weights become operators that unpack them.
Parameter names stay.
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

# Adding and subtracting this number rounds a float32 of magnitude up to 2^22 to the nearest whole
# number, ties to even. ONNX Runtime vectorizes and parallelizes the two additions; DequantizeLinear
# would take ten times as long, on one thread.
ROUNDER = 1.5 * 2**23


class Product(nn.Module):
    """x W + b by MatMul, with W (n_in, n_out). ONNX Runtime packs W for its kernel at load."""

    def __init__(self, weight: Tensor, bias: nn.Parameter | None):
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        y = torch.matmul(x, self.weight)
        return y if self.bias is None else y + self.bias


class Head(nn.Module):
    """Logits in float32 from the weight (vocab_size, n_embd), which a tied embedding shares.

    fused: use FusedMatMul, which reads the weight transposed; only ONNX Runtime has it. Otherwise,
    a tied weight is followed by a Transpose, which loaders fold into a second copy in memory; a
    weight of the head's own is stored as (n_embd, vocab_size): transposed.
    """

    def __init__(self, weight: Tensor, bias: nn.Parameter | None, *, fused: bool, transposed: bool):
        super().__init__()
        self.weight, self.bias = weight, bias
        self.fused, self.transposed = fused, transposed

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
            y = torch.matmul(x, self.weight if self.transposed else self.weight.t())
        y = y if self.bias is None else y + self.bias
        return y.float()


class BlockProduct(nn.Module):
    """x W^T + b by com.microsoft MatMulNBits. W has 8 or 4 bits in blocks; activations 8, 16 or 32.

    The operator rounds activations to 8 bits with a scale per block. 16 bits are two terms of 8: x
    is rounded in the graph exactly as the operator rounds, and the remainder x - rounded(x) takes
    part in the same product as additional rows. 32: activations stay fp32.
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
        # 1e-30: a block of zeros must not divide by zero
        step = blocks.abs().amax(-1, keepdim=True) / 127 + 1e-30
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
    """Scales in float32. ONNX Runtime multiplies 8-bit scales by their steps once, at load."""
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
    """MatMulNBits of x (B, S, n_in) with a weight in the layout of BlockWeights -> (B, S, n_out).

    floats: activations stay fp32; otherwise the operator rounds them to 8 bits.
    """
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
            # 4: activations in 8 bits, with a scale per block of each row. These are the fast
            # kernels, and a row's result does not depend on the other rows of a batch. 1:
            # activations in fp32; CPUs have a kernel for 4-bit weights only
            "accuracy_level": 1 if floats else 4,
        },
        dtype=x.dtype,
        shape=(*x.shape[:-1], n_out),
        version=1,
    )


class StackedProduct(nn.Module):
    """x W^T + b with W's rows in parts: one product per part, their outputs concatenated."""

    def __init__(self, weight: StackedWeights, bias: nn.Parameter | None):
        super().__init__()
        self.parts = nn.ModuleList(BlockProduct(part, None) for part in weight.parts)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([part(x) for part in self.parts], -1)
        return y if self.bias is None else y + self.bias


class OffsetProduct(nn.Module):
    """x W^T + b with W in blocks and an offset per block.

    An offset is multiplied by the sum of its block's activations. The sums are further activations
    of the same product (see quantization/offsets.py).
    """

    def __init__(self, weight: OffsetWeights, bias: nn.Parameter | None):
        super().__init__()
        self.blocks = BlockProduct(weight.blocks, bias)
        self.n_in, self.copies = weight.n_in, weight.copies

    def forward(self, x: Tensor) -> Tensor:
        sums = _in_blocks(x, self.blocks.block).sum(-1)  # (B, S, n_blocks)
        return self.blocks(torch.cat((x, *[sums] * self.copies), -1))


class ChannelProduct(nn.Module):
    """x W + b by com.microsoft MatMulIntegerToFloat: int8 W (n_in, n_out), a scale per channel.

    Activations have 8 bits and a scale per row: x = row * (q - 128) / 127. 16 bits are two terms: x
    = row * (q1 - 128 + (q2 - 128) / 254) / 127. The second terms are additional rows of the same
    product, so the weights are read once.
    """

    def __init__(self, weight: ChannelWeights, bias: nn.Parameter | None):
        super().__init__()
        self.n_out, self.activation_bits = weight.shape[0], weight.activation_bits
        self.weight = nn.Parameter(torch.from_numpy(weight.levels), requires_grad=False)
        self.scales = nn.Parameter(torch.from_numpy(weight.scales / 127), requires_grad=False)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        # a row of zeros is 0 / 0 here; whatever that is rounded to is multiplied by the scale 0
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
            [q, self.weight, row, self.scales, _zero_point()],
            {},
            dtype=row.dtype,
            shape=(*q.shape[:-1], self.n_out),
            version=1,
        )


def _in_blocks(x: Tensor, block: int) -> Tensor:
    """Split the last axis into blocks: (B, S, n_in) -> (B, S, n_in / block, block)."""
    count = x.shape[-1] // block
    return _reshape(x, [0, 0, count, block], (*x.shape[:-1], count, block))


def _reshape(x: Tensor, sizes: list[int], shape: tuple[int, ...]) -> Tensor:
    """ONNX's Reshape, in which 0 keeps an axis.

    torch's reshape would fix or compute the length of each axis; the number of rows that the head
    reads changes from run to run.
    """
    return torch.onnx.ops.symbolic(
        "Reshape", [x, torch.tensor(sizes)], {}, dtype=x.dtype, shape=shape, version=21
    )


def _whole(x: Tensor) -> Tensor:
    """Round x, of magnitude up to 2^22, to the nearest whole number."""
    return (x + ROUNDER) - ROUNDER


def _sum_of_terms(y: Tensor) -> Tensor:
    """Add the products of both terms of the activations: (2, B, S, n_out) -> (B, S, n_out)."""
    coarse, fine = y.split(1)
    return (coarse + fine).squeeze(0)


def _zero_point() -> Tensor:
    """The zero point 128 of uint8 activations. CPUs have fast kernels for uint8 times int8 only."""
    return torch.tensor(128, dtype=torch.uint8)


def _quantize(x: Tensor, scale: float) -> Tensor:
    """round(x / scale) + 128 as uint8."""
    inputs = [x, torch.tensor(scale), _zero_point()]
    return torch.onnx.ops.symbolic(
        "QuantizeLinear", inputs, {}, dtype=torch.uint8, shape=x.shape, version=21
    )


class BlockEmbedding(nn.Module):
    """An embedding in blocks, unpacked by com.microsoft GatherBlockQuantized.

    product: holds the table; the head itself if it is tied. The blocks must be symmetric.
    """

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
    """A BlockEmbedding in two parts: ids from `common.weight.shape[0]` on are rows of `rare`.

    Each id is looked up in both parts, and one result is taken.
    """

    def __init__(self, product: StackedProduct, dtype: torch.dtype):
        super().__init__()
        common, rare = product.parts
        assert isinstance(common, BlockProduct) and isinstance(rare, BlockProduct)
        self.common, self.rare = BlockEmbedding(common, dtype), BlockEmbedding(rare, dtype)

    def forward(self, ids: Tensor) -> Tensor:
        first_rare = self.common.weight.shape[0]
        common = self.common(ids.clamp(max=first_rare - 1))
        return torch.where(
            (ids < first_rare).unsqueeze(-1), common, self.rare((ids - first_rare).clamp(min=0))
        )


def quantized_product(weight: Quantized, bias: nn.Parameter | None) -> nn.Module:
    """The module that computes x W^T + b with a quantized W (n_out, n_in)."""
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
    """Rewrite `gpt` in place for tracing; returns it.

    form: of the cache. quantized: weights of linears and embeddings by module name; a tied
    embedding has the same object as the head. Layers without an entry stay in floating point.
    """
    quantized = quantized or {}
    _replace_linears(gpt, form, quantized)
    _replace_embeddings(gpt, quantized)
    return gpt


def _replace_linears(gpt: GPT, form: CacheForm, quantized: Mapping[str, Quantized]) -> None:
    for name, linear in [(n, m) for n, m in gpt.named_modules() if isinstance(m, nn.Linear)]:
        layer: nn.Module
        if name in quantized:
            layer = quantized_product(quantized[name], linear.bias)
        elif name == "head":
            layer = _head(linear, fused=form != "growing", tied=gpt.config.head_is_embedding)
        else:
            layer = Product(linear.weight.detach().t(), linear.bias)
        gpt.set_submodule(name, layer)


def _head(linear: nn.Linear, *, fused: bool, tied: bool) -> Head:
    if fused or tied:
        return Head(linear.weight, linear.bias, fused=fused, transposed=False)
    weight = nn.Parameter(linear.weight.detach().t(), requires_grad=False)
    return Head(weight, linear.bias, fused=fused, transposed=True)


def _replace_embeddings(gpt: GPT, quantized: Mapping[str, Quantized]) -> None:
    """Replace quantized embeddings; the linears, and so the head, are replaced already."""
    for name, _ in [(n, m) for n, m in gpt.named_modules() if isinstance(m, nn.Embedding)]:
        if name not in quantized:
            continue
        tied = quantized[name] is quantized.get("head")
        product = gpt.head if tied else quantized_product(quantized[name], None)
        if isinstance(product, BlockProduct):
            gpt.set_submodule(name, BlockEmbedding(product, gpt.dtype))
        elif isinstance(product, StackedProduct):
            gpt.set_submodule(name, StackedEmbedding(product, gpt.dtype))
