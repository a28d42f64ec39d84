"""Share traced graphs between tests: PyTorch's exporter takes seconds even for a tiny model.

A traced graph depends on the module's structure (configuration, kinds of layers, shapes, dtypes)
and not on the weights' values. So each structure is traced once per test run, stored without its
weights, and later given the weights of the module at hand.
"""

from __future__ import annotations

import functools
import hashlib
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
    """`trace`, which writes graphs to `folder` and reads there those of an equal structure."""

    @functools.wraps(trace)
    def shared(step: Step, config: GPTConfig, form: GraphForm, dtype: torch.dtype) -> ir.Model:
        file = folder / f"{structure(step, config, form, dtype)}.onnx"
        if file.exists():
            return with_weights(file, step)
        model = trace(step, config, form, dtype)
        write_without_weights(model, file, step)
        return model

    return shared


def structure(step: Step, *settings: Any) -> str:
    """Hash of all that a trace depends on: modules with their plain attributes, tensors' shapes."""
    parts = [repr(setting) for setting in settings]
    for name, module in step.named_modules():
        plain = {
            key: value
            for key, value in vars(module).items()
            if isinstance(value, bool | int | float | str | torch.dtype | None)
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
    names = weights(step).keys() & model.graph.initializers.keys()
    kept = {name: model.graph.initializers[name].const_value for name in names}
    for name in names:
        model.graph.initializers[name].const_value = ir.tensor([0.0], name=name)
    proto = ir.to_proto(model)
    for name, tensor in kept.items():
        model.graph.initializers[name].const_value = tensor
    unfinished = file.with_suffix(f".{id(model)}")
    onnx.save(proto, unfinished)
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
