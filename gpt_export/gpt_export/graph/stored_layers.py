"""The layers of an artifact, read back from its model.onnx: what the step graph is built from.

In: the manifest of an artifact that gptx exported, in fp32 or quantized. Out: a GPT module whose
layers are those that graph_layers made when the artifact was written, with the stored tensors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from gpt_export.graph.layers import (
    BlockEmbedding,
    BlockProduct,
    ChannelProduct,
    Head,
    Product,
    StackedEmbedding,
    StackedProduct,
)
from gpt_export.graph.step_graph import NoStepGraph
from gpt_export.graph.stored_weights import read_graph
from gpt_export.quantization.blocks import BlockWeights, StackedWeights
from gpt_export.quantization.channels import ChannelWeights
from gpt_export.quantization.rotate import Masked, Turned
from gptx.artifact.manifest import Manifest
from gptx_models.gpt.config import GPTConfig
from gptx_models.gpt.model import GPT, Norm


def stored_layers(manifest: Manifest, config: GPTConfig) -> GPT:
    """The module of the step graph of `manifest`'s artifact.

    Raises NoStepGraph for layers that native operators do not have, ArtifactError if the graph file
    is damaged.
    """
    quantization = manifest.raw.get("quantization") or {}
    facts: dict[str, Any] = quantization.get("tensors", {})
    if any(fact.get("offsets") for fact in facts.values()):
        raise NoStepGraph("native operators have no weights with offsets yet")
    stored = _Stored(read_graph(manifest.graph))
    with torch.device("meta"):
        gpt = GPT(config)
    for name, buffer in GPT(_one_layer(config)).named_buffers():
        gpt._buffers[name] = stored.tensors.get(name, buffer)
    rotated = bool(quantization.get("rotated"))
    if rotated:
        turn = nn.Linear(config.n_embd, config.n_embd, device="meta")
        norm = gpt.norm
        gpt.norm = Turned(norm, torch.empty(0, 0), None)  # type: ignore[assignment]
        gpt.norm.turn = turn
    for name, norm in [(n, m) for n, m in gpt.named_modules() if isinstance(m, Norm)]:
        norm.weight = stored.parameter(f"{name}.weight")
        norm.bias = stored.optional(f"{name}.bias")
        norm.kind = "rmsnorm" if rotated else norm.kind
    for name, _ in [(n, m) for n, m in gpt.named_modules() if isinstance(m, nn.Linear)]:
        gpt.set_submodule(name, stored.linear(name, facts.get(name)))
    for name, _ in [(n, m) for n, m in gpt.named_modules() if isinstance(m, nn.Embedding)]:
        gpt.set_submodule(name, stored.embedding(name, facts.get(name), gpt))
    if "wte.mask" in stored.tensors:
        gpt.wte = Masked(gpt.wte, stored.tensors["wte.mask"])  # type: ignore[assignment]
    return gpt


def _one_layer(config: GPTConfig) -> GPTConfig:
    """A model of one layer and one token with the same position tables."""
    import dataclasses

    return dataclasses.replace(
        config, n_layer=1, vocab_size=1, attention=config.attention_of(0), window=None
    )


class _Stored:
    """The initializers of a graph, as tensors."""

    def __init__(self, model: ir.Model) -> None:
        self.tensors = {
            name: torch.from_numpy(np.array(value.const_value.numpy()))
            for name, value in model.graph.initializers.items()
            if value.const_value is not None and name is not None
        }

    def parameter(self, name: str) -> nn.Parameter:
        # A tied head has the embedding's name.
        tied = name if name in self.tensors else name.replace("head.", "wte.", 1)
        tied = tied if tied in self.tensors else tied.replace("wte.", "wte.inner.", 1)
        return nn.Parameter(self.tensors[tied], requires_grad=False)

    def optional(self, name: str) -> nn.Parameter | None:
        return self.parameter(name) if name in self.tensors else None

    def linear(self, name: str, fact: dict[str, Any] | None) -> nn.Module:
        bias = self.optional(f"{name}.bias")
        if fact is None:
            return self._floats(name, bias)
        if "parts" in fact:
            parts = [self._block(f"{name}.parts.{i}", part) for i, part in enumerate(fact["parts"])]
            return StackedProduct(StackedWeights(tuple(parts)), bias)
        if not fact["block"]:
            levels, scales = (self.parameter(f"{name}.{part}") for part in ("weight", "scales"))
            weight = ChannelWeights(levels.numpy(), 127 * scales.numpy(), fact["activation_bits"])
            product = ChannelProduct(weight, bias)
            product.weight, product.scales = levels, scales
            return product
        return BlockProduct(self._block(name, fact), bias)

    def _block(self, name: str, fact: dict[str, Any]) -> BlockWeights:
        def array(part: str) -> np.ndarray | None:
            try:
                return self.parameter(f"{name}.{part}").numpy()
            except KeyError:
                return None

        packed, scales = array("weight"), array("scales")
        assert packed is not None and scales is not None
        width = packed.shape[1] * fact["block"]
        return BlockWeights(
            packed,
            scales,
            array("zeros"),
            fact["bits"],
            fact["block"],
            (packed.shape[0], width),
            fact["activation_bits"],
            array("scale_steps"),
        )

    def _floats(self, name: str, bias: nn.Parameter | None) -> nn.Module:
        weight = self.parameter(f"{name}.weight")
        made = Product.__new__(Product)
        nn.Module.__init__(made)
        made.weight, made.bias = weight, bias
        if name != "head":
            return made
        head = Head.__new__(Head)
        nn.Module.__init__(head)
        head.weight, head.bias, head.fused, head.transposed = weight, bias, True, False
        return head

    def embedding(self, name: str, fact: dict[str, Any] | None, gpt: GPT) -> nn.Module:
        if fact is None:
            weight = self.parameter(f"{name}.weight")
            return nn.Embedding(*weight.shape, _weight=weight)
        tied = name == "wte" and gpt.config.head_is_embedding
        product = gpt.head if tied else self.linear(name, fact)
        if isinstance(product, BlockProduct):
            return BlockEmbedding(product, torch.float32)
        assert isinstance(product, StackedProduct)
        return StackedEmbedding(product, torch.float32)
