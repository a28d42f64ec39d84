"""Share traced graphs between tests: PyTorch's exporter takes seconds even for a tiny model.

A traced graph depends on the module's structure (configuration, kinds of layers, shapes, dtypes)
and not on the weights' values. So each structure is traced once per test run, stored without its
weights, and later given the weights of the module at hand.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnx_ir import tensor_adapters

from gpt_export.graph.attention_forms import GraphForm
from gpt_export.graph.build import Step
from gptx_models.gpt.config import GPTConfig

Trace = Callable[[Step, GPTConfig, GraphForm, torch.dtype], ir.Model]


def traced_once(trace: Trace, folder: Path) -> Trace:
    """`trace`, with a cache of graphs in `folder`.

    Nodes and values that gptx adds afterwards get other names (numbers) than after a trace without
    the cache. Everything else of the graph is the same.
    """

    @functools.wraps(trace)
    def shared(step: Step, config: GPTConfig, form: GraphForm, dtype: torch.dtype) -> ir.Model:
        file = folder / f"{structure(step, config, form, dtype)}.onnx"
        if not file.exists():
            write_without_weights(trace(step, config, form, dtype), file, step)
        return with_weights(file, step)

    return shared


def structure(step: Step, *settings: Any) -> str:
    """Hash of all that a trace depends on: modules with their plain attributes, tensors' shapes."""
    parts = [repr(setting) for setting in settings]
    for name, module in step.named_modules():
        plain = {
            key: value
            for key, value in vars(module).items()
            if isinstance(value, bool | int | float | str | tuple | torch.dtype | None)
        }
        parts.append(f"{name} {type(module).__qualname__} {sorted(plain.items(), key=str)}")
    first: dict[int, str] = {}
    for name, tensor in weights(step).items():
        same = first.setdefault(id(tensor), name)  # a tied weight has two names
        parts.append(f"{name} {same} {tensor.dtype} {tuple(tensor.shape)}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def weights(step: Step) -> dict[str, torch.Tensor]:
    return {
        **dict(step.named_parameters(remove_duplicate=False)),
        **dict(step.named_buffers(remove_duplicate=False)),
    }


def write_without_weights(model: ir.Model, file: Path, step: Step) -> None:
    """Write `model` with an empty tensor in place of each of the module's weights."""
    for name in weights(step).keys() & model.graph.initializers.keys():
        model.graph.initializers[name].const_value = ir.tensor([0.0], name=name)
    unfinished = file.with_suffix(f".{os.getpid()}")
    onnx.save(ir.to_proto(model), unfinished)
    unfinished.rename(file)  # another process finds a whole file or none


def with_weights(file: Path, step: Step) -> ir.Model:
    model = ir.from_proto(onnx.load(file))
    for name, tensor in weights(step).items():
        value = model.graph.initializers.get(name)
        if value is not None:
            stored = tensor_adapters.TorchTensor(tensor.detach(), name=name)
            value.const_value, value.shape = stored, ir.Shape(stored.shape)
            value.type = ir.TensorType(stored.dtype)
    return model
