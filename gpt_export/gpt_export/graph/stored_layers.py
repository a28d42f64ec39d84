"""Read the layers of an artifact back from its model.onnx; the step graph is built from them.

In: model.onnx of an artifact that gptx exported, in fp32 or quantized, and its configuration. Out:
a GPT module with the layers that graph_layers made when the artifact was written. What a layer is
(its bits, its block, the bits of its activations) is read from the operator that uses its weight.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from pathlib import Path
from typing import TypeVar

import onnx_ir as ir
import torch
from torch import Tensor, nn

from gpt_export.graph.layers import (
    BlockEmbedding,
    BlockProduct,
    ChannelProduct,
    Head,
    OffsetProduct,
    Product,
    StackedEmbedding,
    StackedProduct,
)
from gpt_export.graph.read_weights import position_tables
from gpt_export.graph.stored_weights import read_graph
from gpt_export.quantization.blocks import BlockWeights, StackedWeights
from gpt_export.quantization.channels import ChannelWeights
from gpt_export.quantization.offsets import OffsetWeights
from gpt_export.quantization.rotate import Masked, Turned
from gptx.errors import ArtifactError
from gptx_models.gpt.config import GPTConfig
from gptx_models.gpt.model import GPT, Norm

Kind = TypeVar("Kind", bound=nn.Module)
# Operators that look up rows of a table: they are no products.
LOOK_UPS = ("Gather", "GatherBlockQuantized")


def stored_layers(file: Path, config: GPTConfig) -> GPT:
    """The module of an artifact's graph `file`; its weights stay in the mapped data file.

    Raises ArtifactError for a graph that lacks a weight or that gptx did not write.
    """
    stored = StoredGraph(file)
    with torch.device("meta"):  # shapes only: initial values would be discarded
        gpt = GPT(config)
    rotated = stored.has("norm.turn.weight")
    if rotated:
        gpt.norm = _turned(gpt.norm)  # type: ignore[assignment]
    for name, linear in _modules(gpt, nn.Linear):
        head = name == "head"
        gpt.set_submodule(name, stored.head() if head else stored.linear(name, linear.in_features))
    if stored.has("wte.mask"):
        gpt.wte = Masked(gpt.wte, torch.empty(0))  # type: ignore[assignment]
    for name, _ in _modules(gpt, nn.Embedding):
        gpt.set_submodule(name, stored.embedding(name, gpt))
    for name, norm in _modules(gpt, Norm):
        norm.kind = "rmsnorm" if rotated else norm.kind
        norm.bias = stored.optional(f"{name}.bias")
    _fill(gpt, stored)
    return gpt.eval()


def _turned(norm: nn.Module) -> Turned:
    """`norm` with a matrix behind it (see rotate.py), which is read like any other linear layer."""
    return Turned(norm, torch.empty(1, 1), None)


def _modules(gpt: GPT, kind: type[Kind]) -> list[tuple[str, Kind]]:
    return [(name, module) for name, module in gpt.named_modules() if isinstance(module, kind)]


def _fill(gpt: GPT, stored: StoredGraph) -> None:
    """Put norms, scores, the mask and position tables into a module that has its layers."""
    layers = (Product, Head, BlockProduct, ChannelProduct, BlockEmbedding, nn.Embedding)
    for owner, module in gpt.named_modules():
        if isinstance(module, layers):
            continue
        for name, _ in list(module.named_parameters(owner, recurse=False)):
            setattr(module, name.rpartition(".")[2], stored.parameter(name))
    for name, table in position_tables(gpt.config).items():
        # A rotated table of sinusoidal positions is another than the configuration gives. Tables of
        # a graph in fp16 are rounded, and native operators compute in fp32.
        kept = stored.tensors.get(name, table)
        gpt._buffers[name] = table if kept.dtype == torch.float16 else kept


class StoredGraph:
    """The weights of a graph by name, and the operators that read them."""

    def __init__(self, file: Path) -> None:
        self.file = file
        graph = read_graph(file).graph
        self.tensors = {
            name: _tensor(value.const_value)
            for name, value in graph.initializers.items()
            if value.const_value is not None
        }
        self.parameters: dict[str, nn.Parameter] = {}
        self.readers: dict[str, list[ir.Node]] = defaultdict(list)
        for node in graph:
            for value in node.inputs:
                if value is not None and value.name in self.tensors:
                    self.readers[value.name].append(node)

    def has(self, name: str) -> bool:
        return name in self.tensors

    def parameter(self, name: str) -> nn.Parameter:
        """The weight of this name, the same object at each call. Raises ArtifactError."""
        if name not in self.tensors:
            raise ArtifactError(
                f"{self.file} lacks the weight {name}: it was not written by gptx export"
            )
        if name not in self.parameters:
            self.parameters[name] = nn.Parameter(self.tensors[name], requires_grad=False)
        return self.parameters[name]

    def matrix(self, name: str) -> nn.Parameter:
        """A weight of two dimensions. Raises ArtifactError."""
        weight = self.parameter(name)
        if weight.ndim != 2:
            shape = list(weight.shape)
            raise ArtifactError(f"{self.file}: {name} is {shape}, expected a matrix")
        return weight

    def optional(self, name: str) -> nn.Parameter | None:
        return self.parameter(name) if self.has(name) else None

    def reader(self, name: str, *, product: bool) -> ir.Node:
        """The operator that multiplies with a weight or, if not `product`, looks up its rows.

        Raises ArtifactError.
        """
        self.parameter(name)
        for node in self.readers[name]:
            if (node.op_type in LOOK_UPS) != product:
                return node
        raise ArtifactError(f"{self.file}: no operator that gptx knows reads {name}")

    def linear(self, name: str, n_in: int) -> nn.Module:
        """The linear layer of this name, with n_in inputs."""
        if self.has(f"{name}.blocks.weight"):
            return self.offsets(f"{name}.blocks", n_in)
        return self.product(name, self.optional(f"{name}.bias"))

    def head(self) -> nn.Module:
        """The head; a tied one has the embedding's weights."""
        own = any(self.has(f"head.{part}") for part in ("weight", "parts.0.weight"))
        table = "wte.inner" if self.has("wte.mask") else "wte"
        return self.product("head" if own else table, self.optional("head.bias"), head=True)

    def product(self, name: str, bias: nn.Parameter | None, *, head: bool = False) -> nn.Module:
        """x W^T + bias with the weights under this name."""
        if parts := self.parts(name):
            weights = tuple(self.blocks(part, product=True) for part in parts)
            return StackedProduct(StackedWeights(weights), bias)
        node = self.reader(f"{name}.weight", product=True)
        if node.op_type == "MatMulNBits":
            return BlockProduct(self.blocks(name, product=True), bias)
        weight = self.matrix(f"{name}.weight")
        match node.op_type:
            case "MatMulIntegerToFloat":
                scales = self.parameter(f"{name}.scales")
                bits = 16 if _in_two_terms(node) else 8
                levels = ChannelWeights(weight.numpy(), scales.numpy(), bits)
                made = ChannelProduct(levels, bias)
                made.scales = scales  # they are divided by 127 already
                return made
            case _ if head:
                return Head(weight, bias, fused=True, transposed=node.op_type == "MatMul")
            case _:
                return Product(weight, bias)

    def parts(self, name: str) -> list[str]:
        """Names of the two parts of a weight or table whose rows have several forms; else none."""
        for first, second in (("parts.0", "parts.1"), ("common", "rare")):
            if self.has(f"{name}.{first}.weight"):
                return [f"{name}.{first}", f"{name}.{second}"]
        return []

    def blocks(self, name: str, *, product: bool) -> BlockWeights:
        """Weights in blocks. Raises ArtifactError if their operator does not describe them."""
        packed, scales = (self.parameter(f"{name}.{part}").numpy() for part in ("weight", "scales"))
        zeros, steps = (self.optional(f"{name}.{part}") for part in ("zeros", "scale_steps"))
        node = self.reader(f"{name}.weight", product=product)
        bits, block = (node.attributes.get_int(part) for part in ("bits", "block_size"))
        if packed.ndim != 3 or bits is None or block is None:
            raise ArtifactError(f"{self.file}: {name}.weight is not stored in blocks as gptx does")
        n_in = node.attributes.get_int("K", packed.shape[1] * block)
        floats = node.attributes.get_int("accuracy_level", 4) == 1
        return BlockWeights(
            packed,
            scales,
            None if zeros is None else zeros.numpy(),
            bits,
            block,
            (packed.shape[0], n_in),
            32 if floats else 16 if _in_two_terms(node) else 8,
            None if steps is None else steps.numpy(),
        )

    def offsets(self, name: str, n_in: int) -> OffsetProduct:
        """A product whose weights have offsets, in columns behind the first n_in (OffsetWeights).

        Raises ArtifactError if the columns are not whole copies of the blocks' sums.
        """
        stored = self.blocks(name, product=True)
        copies, rest = divmod((stored.shape[1] - n_in) * stored.block, n_in)
        if copies < 1 or rest:
            raise ArtifactError(
                f"{self.file}: {name}.weight has {stored.shape[1]} columns, which does not fit"
                f" {n_in} inputs with offsets"
            )
        return OffsetProduct(OffsetWeights(stored, n_in, copies), self.optional(f"{name}.bias"))

    def embedding(self, name: str, gpt: GPT) -> nn.Module:
        """The table of this name. gpt: has its head already, whose weights a tied table has."""
        if not self.parts(name) and not self.has(f"{name}.scales"):
            weight = self.matrix(f"{name}.weight")
            table = nn.Embedding(weight.shape[0], weight.shape[1], _weight=weight)
            table.weight = weight  # the object that a tied head has, not the copy
            return table
        if name.startswith("wte") and gpt.config.head_is_embedding:
            product = gpt.head
        elif parts := self.parts(name):
            weights = tuple(self.blocks(part, product=False) for part in parts)
            product = StackedProduct(StackedWeights(weights), None)
        else:
            product = BlockProduct(self.blocks(name, product=False), None)
        if isinstance(product, StackedProduct):
            return StackedEmbedding(product, torch.float32)
        assert isinstance(product, BlockProduct)
        return BlockEmbedding(product, torch.float32)


def _tensor(stored: ir.TensorProtocol) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the mapped file cannot be written to
        return torch.from_numpy(stored.numpy())


def _in_two_terms(node: ir.Node) -> bool:
    """True if a product's activations have 16 bits: its result is then split into two terms.

    The terms are the first axis; queries, keys and values are split along the last.
    """
    users = [user for user, _ in node.outputs[0].uses()]
    return any(user.op_type == "Split" and not user.attributes.get_int("axis", 0) for user in users)
