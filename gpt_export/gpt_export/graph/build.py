"""Trace a GPT module to an ONNX graph with PyTorch's exporter, tidy the graph, and save it.

The graph is an onnx_ir model whose weights stay in the module's memory until it is saved.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
import torch
from onnxscript import optimizer
from torch import Tensor, nn

from gpt_export.graph.attention_forms import OPSET, GraphForm, Scatter, Shared, SharedOnCuda
from gpt_export.graph.fusions import fuse_skip_norms
from gpt_export.graph.stored_weights import read_graph
from gptx_models.gpt.config import GPTConfig
from gptx_models.gpt.model import GPT, Cached, Past

KEEP, FIRST = "num_logits_to_keep", "first_logit"
ATTENDS = {"shared": Shared, "growing": Cached, "scatter": Scatter, "cuda": SharedOnCuda}


class Step(nn.Module):
    """The function that is traced: one run of the model, with the cache as inputs and outputs."""

    def __init__(self, gpt: GPT, form: GraphForm):
        super().__init__()
        self.gpt = gpt
        self.form: GraphForm = form

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past: Past,
        logits: Tensor,
    ) -> tuple[Tensor, Past]:
        """Returns logits (B, kept, vocab_size), float32, and the new cache.

        input_ids, position_ids: int64 (B, S). attention_mask: int64 (B, P + S). past: keys and
        values of each layer. logits: the input KEEP, the number of last positions whose logits are
        computed; 0 means all. In the form `cuda` it is the input FIRST, the first of these
        positions. Computing FIRST from KEEP in the graph would make ONNX Runtime copy the number
        between the devices.
        """
        attend = ATTENDS[self.form](self.gpt, position_ids, attention_mask, past)
        hidden = self.gpt.hidden(input_ids, position_ids, attend)
        # ONNX's Slice from -0 takes all positions, from -1 the last one: no branch is needed
        first = logits if self.form == "cuda" else -logits.reshape(1)
        kept = torch.onnx.ops.symbolic(
            "Slice",
            [hidden, first, torch.tensor([2**62]), torch.tensor([1])],
            {},
            dtype=hidden.dtype,
            shape=hidden.shape,
            version=13,
        )
        return self.gpt.head(kept), attend.present


def build_graph(gpt: GPT, form: GraphForm) -> ir.Model:
    """Trace `gpt`, whose layers `graph_layers` has rewritten, to an onnx_ir model.

    The cache has the dtype that the module computes in.
    """
    config = gpt.config
    step = Step(gpt, form).eval()
    model = trace(step, config, form, gpt.dtype)
    _name(model, config, step)
    _optimize(model, {name for name, _ in gpt.named_parameters()})
    if form != "growing":
        fuse_skip_norms(model)
    _drop_debug_data(model)
    return model


def save_graph(model: ir.Model, folder: Path) -> None:
    """Write folder/model.onnx, and the weights, each once, to folder/model.onnx_data.

    Constants under 1 kB stay inside the graph file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ir.save(
        model, folder / "model.onnx", external_data="model.onnx_data", size_threshold_bytes=1024
    )


def cache_names(config: GPTConfig, what: str) -> list[str]:
    """Names of the cache's inputs ("past_key_values") or outputs ("present"), layer by layer."""
    return [f"{what}.{i}.{half}" for i in range(config.n_layer) for half in ("key", "value")]


def save_beside(model: ir.Model, file: Path) -> None:
    """Write a second graph to `file`, beside model.onnx, whose weights it shares.

    Weights that model.onnx has under the same name, with the same bytes, are read from its data
    file. All others, and small ones, stay inside the new graph file.
    """
    share_weights(model, file.with_name("model.onnx"))
    ir.save(model, file)


def share_weights(model: ir.Model, main: Path) -> None:
    """Let a graph read the weights that `main` has under the same name, with the same bytes.

    They are read from the data file of `main`. All others stay as they are.
    """
    places, stored = ir.load(main).graph.initializers, read_graph(main).graph.initializers
    for name, value in model.graph.initializers.items():
        place = places[name].const_value if name in places else None
        weight, own = stored[name].const_value if name in stored else None, value.const_value
        if (
            isinstance(place, ir.ExternalTensor)
            and weight is not None
            and own is not None
            and weight.tobytes() == own.tobytes()
        ):
            shape: Any = own.shape
            value.const_value = ir.ExternalTensor(
                place.location,
                place.offset,
                place.length,
                own.dtype,
                shape=shape,
                name=name,
                base_dir=place.base_dir,
            )


def trace(step: Step, config: GPTConfig, form: GraphForm, dtype: torch.dtype) -> ir.Model:
    # all different, so that no two dimensions are taken for one; a size of 1 would become a
    # constant
    rows, new, old = 2, 3, 5
    buffer = old + new if form != "growing" else old

    def past() -> Tensor:
        return torch.zeros(rows, config.n_kv_head, buffer, config.head_dim, dtype=dtype)

    inputs = (
        torch.zeros(rows, new, dtype=torch.int64),
        torch.ones(rows, old + new, dtype=torch.int64),
        torch.arange(old, old + new).repeat(rows, 1),
        [(past(), past()) for _ in range(config.n_layer)],
        torch.tensor([0] if form == "cuda" else 0),
    )
    names = [
        "input_ids",
        "attention_mask",
        "position_ids",
        *cache_names(config, "past_key_values"),
        _logits_input(form),
    ]
    any_size = torch.export.Dim.DYNAMIC
    matrix, cache = {0: any_size, 1: any_size}, {0: any_size, 2: any_size}
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            step,
            inputs,
            dynamo=True,
            dynamic_shapes=(matrix, matrix, matrix, [(cache, cache)] * config.n_layer, None),
            input_names=names,
            output_names=["logits", *cache_names(config, "present")],
            opset_version=OPSET[form],
            optimize=False,  # would merge and rename weights that happen to be equal; see _optimize
            verbose=False,
        )
    assert program is not None
    return program.model


def _name(model: ir.Model, config: GPTConfig, step: Step) -> None:
    """Name weights after the module's parameters, and name the dimensions of inputs and outputs.

    The input KEEP (or FIRST) gets its default of 0. Dimension names are those of optimum's exports.
    """
    graph = model.graph
    canonical: dict[int, str] = {}
    for name, tensor in [
        *step.gpt.named_parameters(remove_duplicate=False),
        *step.gpt.named_buffers(),
    ]:
        first = canonical.setdefault(id(tensor), name)
        value = graph.initializers.get(f"gpt.{name}")
        if value is not None:  # a tied weight has its first name: the embedding's
            del graph.initializers[f"gpt.{name}"]
            value.name = first
            graph.initializers[first] = value
    heads = (config.n_kv_head, "past_sequence_length", config.head_dim)
    shapes: dict[str, tuple[int | str, ...]] = {
        "input_ids": ("batch_size", "sequence_length"),
        "attention_mask": ("batch_size", "total_sequence_length"),
        "position_ids": ("batch_size", "sequence_length"),
        "logits": ("batch_size", KEEP, config.n_class or config.vocab_size),
    }
    for name in cache_names(config, "past_key_values"):
        shapes[name] = ("batch_size", *heads)
    for name in cache_names(config, "present"):
        shapes[name] = ("batch_size", config.n_kv_head, "present_sequence_length", config.head_dim)
    for value in (*graph.inputs, *graph.outputs):
        if value.name in shapes:
            value.shape = ir.Shape(shapes[value.name])
    name = _logits_input(step.form)
    value = next(value for value in graph.inputs if value.name == name)
    value.const_value = ir.tensor(np.array([0] if name == FIRST else 0, np.int64), name=name)
    graph.initializers[name] = value


def _logits_input(form: GraphForm) -> str:
    """Name of the input that selects the positions whose logits are computed."""
    return FIRST if form == "cuda" else KEEP


def _optimize(model: ir.Model, parameters: set[str]) -> None:
    """onnxscript's default optimizations, except those that would merge or fold parameters.

    Each parameter keeps its name, by which `load_gpt` finds it.
    """
    passes.InlinePass()(model)

    def reads_a_parameter(node: ir.Node) -> bool:
        return any(value is not None and value.name in parameters for value in node.inputs)

    optimizer.fold_constants_ir(
        model,
        onnx_shape_inference=True,
        input_size_limit=1024,
        output_size_limit=1024,
        should_fold=lambda node: False if reads_a_parameter(node) else None,
    )
    tidy = [
        passes.RemoveUnusedNodesPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedOpsetsPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
    ]
    ir.passes.Sequential(*tidy)(model)


def _drop_debug_data(model: ir.Model) -> None:
    """Drop debugging data of the exporter: stack traces, symbol names, shapes inside the graph."""
    model.metadata_props.clear()
    model.producer_name, model.producer_version = "gptx", None
    model.graph.metadata_props.clear()
    model.graph.name = "gpt"
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            if not value.is_graph_output():
                value.shape = None
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


@contextlib.contextmanager
def quiet():
    """Silence output, warnings and logs of the exporter (on torchvision, opsets, deprecations)."""
    loggers = [
        logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")
    ]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)
