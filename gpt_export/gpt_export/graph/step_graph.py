"""Build the step graph: a GPT of gptx's native operators over packed tokens (onnx/step.onnx).

In: the module that was traced for model.onnx (see graph_layers), so that weights have the same
names and bytes; or a module of layers that only native operators have (see native_layers). The
graph holds no operator of ONNX Runtime that adds, multiplies or calls exp. It is written node by
node, as native operators cannot be traced.

Inputs: input_ids, row_ids and position_ids (T,) of the tokens; row_starts (R,), the first position
that a row's tokens see; logits_at (L,), the tokens whose logits are computed; hidden_at (H,), the
tokens whose states are; inputs_embeds (E, n_embd), whose row k stands for the token of id -1 - k;
the cache of R rows.
Outputs: logits (L, vocab_size); last_hidden_state (H, n_embd), behind the final norm; and the
cache, which is written in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir import tensor_adapters
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
from gpt_export.graph.native_layers import NativeEmbedding, NativeParts, NativeProduct
from gpt_export.quantization.rotate import Masked, Turned, rotation, unrotated_norm
from gptx.artifact.cache_parts import cache_names, cache_parts
from gptx.errors import GptxError
from gptx_models.gpt.config import GPTConfig
from gptx_models.gpt.model import GPT, Attention, Norm

DOMAIN, VERSION = "gptx", 1
# The numbers of kernels.h
ACTIVATIONS = {"none": 0, "relu": 1, "gelu": 2, "gelu_tanh": 3, "silu": 4, "swiglu": 4}
NORMS = {"rmsnorm": 1, "layernorm": 2}
KINDS = {"dot": 0, "cosine": 1, "additive": 2}
LAYOUTS = {"blocks": 0, "channels": 1, "in_out": 2, "out_in": 3}
# Terms of quantized weights, by the bits of their activations. Two terms of 8 bits are next to
# floats, and much faster.
TERMS = {8: 1, 16: 2, 32: 2}
WIDEST_HEAD = 1024

CacheType = Literal["fp32", "fp16", "int8"]
# The operator and the type of each type of keys and values
CACHES = {
    "fp32": ("Attention", np.dtype(np.float32)),
    "fp16": ("AttentionHalf", np.dtype(np.float16)),
    "int8": ("AttentionByte", np.dtype(np.int8)),
}


class NoStepGraph(GptxError):
    """The native operators have no form for a part of this model; the message is the reason."""


def build_step_graph(gpt: GPT, cache: CacheType | None = None) -> ir.Model:
    """The step graph of `gpt`, whose layers graph_layers has rewritten. Raises NoStepGraph.

    cache: the type of keys and values, by default fp16 if weights are rounded, else fp32.
    """
    config = gpt.config
    if not has_step_graph(config):
        raise NoStepGraph(f"native operators have heads of at most {WIDEST_HEAD:,} numbers")
    graph = _Graph(gpt, cache or _default_cache(gpt))
    ids, rows, places = (
        graph.input(name, ["tokens"]) for name in ("input_ids", "row_ids", "position_ids")
    )
    starts = graph.input("row_starts", ["rows"])
    wanted, hidden_at = graph.input("logits_at", ["logits"]), graph.input("hidden_at", ["states"])
    embeds = graph.tensor("inputs_embeds", ["embeds", config.n_embd], ir.DataType.FLOAT)
    parts = cache_parts(graph.cache_dtype, config.head_dim)
    kinds = [
        (["rows", config.n_kv_head, "capacity", *part.shape], ir.DataType.from_numpy(part.dtype))
        for part in parts
    ]
    past_names = cache_names("past_key_values", config.n_layer, parts)
    past = [graph.tensor(name, *kind) for name, kind in zip(past_names, kinds * config.n_layer)]

    turn = graph.rotation(config) if isinstance(gpt.norm, Turned) else None
    if turn:
        embeds = graph.linear(turn, embeds)
    x = graph.embed(gpt.wte, ids, embeds=embeds)
    if config.position == "learned":
        x = graph.embed(gpt.wpe, places, residual=x)
    elif config.position == "sinusoidal":
        x = graph.node("Embed", [places, graph.number(gpt.positions), *[None] * 5, x])
    present: list[ir.Value] = []
    for number, block in enumerate(gpt.layers):
        own = past[len(parts) * number : len(parts) * (number + 1)]

        def attend(layer: Attention, qkv: ir.Value, own: Sequence[ir.Value] = own) -> ir.Value:
            y, *new = graph.attention(gpt, layer, [qkv, rows, places], own, starts)
            present.extend(new)
            return y

        before, behind = (block.norm1, block.norm2) if block.pre_norm else (None, None)
        y = attend(block.attn, graph.linear(block.attn.qkv, x, norm=before))
        x = graph.linear(block.attn.out, y, residual=x)
        if not block.pre_norm:
            x = graph.normalize(block.norm1, x)
        y = graph.linear(block.mlp.up, x, norm=behind, activation=block.mlp.activation)
        x = graph.linear(block.mlp.down, y, residual=x)
        if not block.pre_norm:
            x = graph.normalize(block.norm2, x)
    hidden = graph.onnx_node("Gather", [x, hidden_at], axis=0)
    x = graph.onnx_node("Gather", [x, wanted], axis=0)
    norm: Norm | None = None
    if isinstance(gpt.norm, Turned):
        inner = gpt.norm.norm
        assert isinstance(inner, Norm) and turn
        x = graph.linear(gpt.norm.turn, x, norm=inner)
        back = Head(turn.weight, None, fused=True, transposed=False)
        outer = unrotated_norm(gpt.norm, config)
        graph.name_new("hidden_norm", outer)
        hidden = graph.normalize(outer, graph.linear(back, hidden))
    elif isinstance(gpt.norm, Norm):
        norm = gpt.norm
        hidden = graph.normalize(norm, hidden)
    logits = graph.linear(gpt.head, x, norm=norm)
    graph.output(logits, "logits", ["logits", config.n_class or config.vocab_size])
    graph.output(hidden, "last_hidden_state", ["states", config.n_embd])
    present_names = cache_names("present", config.n_layer, parts)
    for value, name, kind in zip(present, present_names, kinds * config.n_layer):
        graph.output(value, name, *kind)
    return graph.model("step")


def build_products(products: Sequence[nn.Module], n_in: int) -> ir.Model:
    """A graph of products with one input, x (tokens, n_in). It is built to be timed.

    products: modules that quantized_product has made.
    """
    graph = _Graph(nn.ModuleList(products))
    x = graph.tensor("x", ["tokens", n_in], ir.DataType.FLOAT)
    for number, product in enumerate(products):
        graph.output(graph.linear(product, x), f"y{number}", None)
    return graph.model("products")


def has_step_graph(config: GPTConfig) -> bool:
    """True if native operators have the heads of a model; they have its layers."""
    return config.head_dim <= WIDEST_HEAD


def _default_cache(gpt: GPT) -> CacheType:
    """The type of keys and values: 16 bits if weights are rounded, which loses far more."""
    quantized = BlockProduct | ChannelProduct | NativeProduct
    rounded = gpt.dtype == torch.float16 or any(
        isinstance(layer, quantized) for layer in gpt.modules()
    )
    return "fp16" if rounded else "fp32"


class _Graph:
    """The graph under construction. module: its parameters and buffers become weights."""

    def __init__(self, module: nn.Module, cache: CacheType = "fp32") -> None:
        self.attention_operator, self.cache_dtype = CACHES[cache]
        self.nodes: list[ir.Node] = []
        self.inputs: list[ir.Value] = []
        self.outputs: list[ir.Value] = []
        self.weights: dict[str, ir.Value] = {}
        # A tied weight has its first name, as in model.onnx.
        self.names: dict[int, str] = {}
        tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers()]
        for name, tensor in tensors:
            self.names.setdefault(id(tensor), name)

    def input(self, name: str, shape: Sequence[str | int]) -> ir.Value:
        return self.tensor(name, shape, ir.DataType.INT64)

    def tensor(self, name: str, shape: Sequence[str | int], kind: ir.DataType) -> ir.Value:
        """A new input of the graph."""
        value = ir.Value(name=name, shape=ir.Shape(list(shape)), type=ir.TensorType(kind))
        self.inputs.append(value)
        return value

    def output(
        self,
        value: ir.Value,
        name: str,
        shape: Sequence[str | int] | None,
        kind: ir.DataType = ir.DataType.FLOAT,
    ) -> None:
        """Make a value an output of the graph, of this name."""
        value.name, value.type = name, ir.TensorType(kind)
        value.shape = None if shape is None else ir.Shape(list(shape))
        self.outputs.append(value)

    def weight(self, tensor: Tensor | None) -> ir.Value | None:
        """The initializer of a parameter or buffer of the module."""
        if tensor is None:
            return None
        name = self.names[id(tensor)]
        if name not in self.weights:
            self.weights[name] = _initializer(name, tensor)
        return self.weights[name]

    def number(self, tensor: Tensor | None) -> ir.Value | None:
        """As `weight`, in fp32: gains, biases and tables of positions of a model in fp16."""
        if tensor is None or tensor.dtype == torch.float32:
            return self.weight(tensor)
        name = f"{self.names[id(tensor)]}.fp32"
        if name not in self.weights:
            self.weights[name] = _initializer(name, tensor.float())
        return self.weights[name]

    def node(self, op: str, inputs: Sequence[ir.Value | None], n: int = 1, **values: Any) -> Any:
        """A native operator; returns its output, or the list of `n` outputs."""
        inputs = list(inputs)
        while inputs and inputs[-1] is None:
            inputs.pop()
        made = ir.node(op, inputs, attributes=values, domain=DOMAIN, num_outputs=n)
        self._add(made)
        return made.outputs[0] if n == 1 else list(made.outputs)

    def onnx_node(self, op: str, inputs: Sequence[ir.Value | None], **values: Any) -> ir.Value:
        made = ir.node(op, list(inputs), attributes=values)
        self._add(made)
        return made.outputs[0]

    def _add(self, node: ir.Node) -> None:
        for output in node.outputs:
            output.name = f"v{len(self.nodes)}_{output.index()}"
        node.name = f"{node.op_type}_{len(self.nodes)}"
        self.nodes.append(node)

    def rotation(self, config: GPTConfig) -> Product:
        """x Q of a rotated model. Q is in fp16, which loses less than the rounded layers do.

        inputs_embeds and last_hidden_state are not rotated; all that lies between them is.
        """
        product = Product(rotation(config).half(), None)
        self.name_new("rotation", product)
        return product

    def name_new(self, name: str, module: nn.Module) -> None:
        """Name the parameters of a module that the model itself does not have."""
        for part, tensor in module.named_parameters(name):
            self.names[id(tensor)] = part

    def embed(
        self,
        table: nn.Module,
        ids: ir.Value,
        *,
        residual: ir.Value | None = None,
        embeds: ir.Value | None = None,
    ) -> ir.Value:
        """Rows of `table` or, for negative ids, of `embeds`; plus `residual`."""
        inputs: list[ir.Value | None]
        if isinstance(table, NativeEmbedding):
            tensors = [table.weight, table.scales, table.scale_steps, None, None, None]
            more = [table.offsets, table.offset_steps, table.table]
            inputs = [*map(self.weight, tensors), residual, None, *map(self.weight, more), embeds]
            return self.node("Embed", [ids, *inputs], block=table.block)
        mask = None
        if isinstance(table, Masked):
            table, mask = table.inner, table.mask
        parts = [table.common, table.rare] if isinstance(table, StackedEmbedding) else [table]
        inputs = []
        block = 0
        for part in parts:
            if isinstance(part, BlockEmbedding):
                block = block or part.block
                tensors = (part.weight, part.scales, part.scale_steps)
            else:
                assert isinstance(part, nn.Embedding)
                tensors = (part.weight, None, None)
            inputs += [self.weight(tensor) for tensor in tensors]
        inputs += [None] * (6 - len(inputs))
        inputs += [residual, self.number(mask), None, None, None, embeds]
        return self.node("Embed", [ids, *inputs], block=block)

    def normalize(self, norm: Norm, x: ir.Value) -> ir.Value:
        inputs = [x, self.number(norm.weight), self.number(norm.bias)]
        return self.node("Normalize", inputs, norm=NORMS[norm.kind], epsilon=float(norm.eps))

    def attention(
        self,
        gpt: GPT,
        layer: Attention,
        inputs: list[ir.Value],
        cache: Sequence[ir.Value],
        starts: ir.Value,
    ) -> Any:
        """Attention's output, and the new cache of its layer."""
        config = layer.config
        rope = config.position == "rope"
        more = [
            self.number(gpt.rope_cos if rope else None),
            self.number(gpt.rope_sin if rope else None),
            self.number(layer.score),
            starts,
        ]
        keys_values, scales = cache[:2], cache[2:]
        return self.node(
            self.attention_operator,
            [*inputs, *keys_values, *more, None, None, None, *scales],
            1 + len(cache),
            n_head=config.n_head,
            n_kv_head=config.n_kv_head,
            window=layer.window or 0,
            kind=KINDS[layer.kind],
        )

    def linear(
        self,
        layer: nn.Module,
        x: ir.Value,
        *,
        norm: Norm | None = None,
        activation: str = "none",
        residual: ir.Value | None = None,
        factor: ir.Value | None = None,
    ) -> ir.Value:
        """activated(norm(x) W^T + bias) * factor + residual."""
        if isinstance(layer, StackedProduct):
            parts = [self.linear(part, x, norm=norm) for part in layer.parts]
            return self.onnx_node("Concat", parts, axis=-1)
        if isinstance(layer, NativeParts) and activation == "swiglu":
            gate, up = layer.parts
            y = self.linear(up, x, norm=norm)
            return self.linear(gate, x, norm=norm, activation="silu", factor=y)
        if isinstance(layer, NativeParts):
            parts = [self.linear(part, x, norm=norm) for part in layer.parts]
            return self.onnx_node("Concat", parts, axis=-1)
        n_in, more = None, {}
        if isinstance(layer, OffsetProduct):
            n_in, more, layer = layer.n_in, {"copies": layer.copies}, layer.blocks
        steps = zeros = scales = offsets = offset_steps = table = None
        bias: Any = layer.bias
        if isinstance(layer, BlockProduct):
            n_in, terms = n_in or layer.n_in, TERMS[layer.activation_bits]
            scales, steps, zeros = layer.scales, layer.scale_steps, layer.zeros
            layout, bits, block = "blocks", layer.bits, layer.block
        elif isinstance(layer, NativeProduct):
            n_in, terms = layer.n_in, TERMS[layer.activation_bits]
            scales, steps, table = layer.scales, layer.scale_steps, layer.table
            offsets, offset_steps = layer.offsets, layer.offset_steps
            layout, bits, block = "blocks" if layer.block else "out_in", layer.bits, layer.block
        elif isinstance(layer, ChannelProduct):
            n_in, terms = layer.weight.shape[0], TERMS[layer.activation_bits]
            layout, bits, block, scales = "channels", 8, 0, layer.scales
        elif isinstance(layer, Product | Head):
            outward = isinstance(layer, Head) and not layer.transposed
            n_in = layer.weight.shape[1 if outward else 0]
            layout, block, terms = "out_in" if outward else "in_out", 0, 0
            bits = 8 * layer.weight.element_size()
        else:
            raise NoStepGraph(f"native operators have no {type(layer).__name__}")
        tensors = [layer.weight, scales, steps, zeros]
        weights = [*map(self.weight, tensors), self.number(bias)]
        last = [*map(self.weight, (offsets, offset_steps, table)), factor]
        gain = [self.number(norm.weight), self.number(norm.bias)] if norm else [None, None]
        return self.node(
            "Linear",
            [x, *weights, residual, *gain, *last],
            layout=LAYOUTS[layout],
            bits=bits,
            block=block,
            n_in=n_in,
            terms=terms,
            norm=NORMS[norm.kind] if norm else 0,
            epsilon=float(norm.eps) if norm else 0.0,
            activation=ACTIVATIONS[activation],
            gated=int(activation == "swiglu"),
            **more,
        )

    def model(self, name: str) -> ir.Model:
        graph = ir.Graph(
            self.inputs,
            self.outputs,
            nodes=self.nodes,
            initializers=list(self.weights.values()),
            opset_imports={"": 21, DOMAIN: VERSION},
            name=name,
        )
        return ir.Model(graph, ir_version=10)


def _initializer(name: str, tensor: Tensor) -> ir.Value:
    stored = tensor_adapters.TorchTensor(tensor.detach(), name=name)
    value = ir.Value(name=name, shape=ir.Shape(stored.shape), const_value=stored)
    value.type = ir.TensorType(stored.dtype)
    return value
