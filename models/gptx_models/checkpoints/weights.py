"""The weights of a GPT from named tensors (`build`) and back (`tensors_of`), one tensor at a time.

hf_names.py knows the names, check_weights.py the checks. Knows no file formats.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gptx.errors import CheckpointError
from gptx_models.checkpoints.check_weights import check_finite, check_tensors
from gptx_models.checkpoints.family import Family
from gptx_models.checkpoints.hf_names import LAYOUTS, Layout, StoredParameter, stored_parameter
from gptx_models.checkpoints.tensor_source import NamedTensor, TensorSource
from gptx_models.gpt.config import GPTConfig
from gptx_models.gpt.model import GPT

_MOST_LAYERS = 1000  # with more layers, the file must have at least as many tensors


class _WithoutInitialization(TorchFunctionMode):
    """Leave the weights of new modules unset: they are read from a file."""

    _fills = (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self._fills:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def build(config: GPTConfig, layout: Layout, source: TensorSource) -> GPT:
    """The GPT in fp32 and eval mode, its weights read from `source` one by one.

    Memory of the model's size is allocated only after the source is known to have all tensors.
    Raises CheckpointError if tensors are missing, do not fit, or hold NaN or infinity.
    """
    _check_layers(config, source)
    with torch.device("meta"):
        # A tied head is no parameter of its own: it is wte.weight.
        shapes = {name: p.shape for name, p in GPT(config).named_parameters()}
    places = _places(shapes, config, layout, source)
    head = f"{layout.names.get('head', ('head',))[0]}.weight"
    embedding = places["wte.weight"].names[0]
    tied_head = head if config.head_is_embedding and head in source.shapes else None
    if tied_head and embedding not in source.shapes:
        # A writer that drops one of two names for one tensor may keep the head's.
        places["wte.weight"], tied_head = replace(places["wte.weight"], names=(head,)), None
    is_classifier = config.n_class > 0
    check_tensors(places, shapes, source, layout, tied_head=tied_head, is_classifier=is_classifier)
    with _WithoutInitialization():
        model = GPT(config)
    _copy_weights(model, places, source)
    if tied_head and not _equal(source.read(head), model.get_parameter("wte.weight").detach()):
        raise CheckpointError(
            f"{source.where}: {head} differs from {embedding}, and the configuration ties the two"
            " (tie_word_embeddings): set tie_word_embeddings to false if the head is meant, or"
            f" take {head} out of the file, as transformers does when it loads it"
        )
    return model.eval()


def _check_layers(config: GPTConfig, source: TensorSource) -> None:
    """Refuse an absurd number of layers: to list all missing tensors would take minutes."""
    if config.n_layer > max(_MOST_LAYERS, len(source.shapes)):
        raise CheckpointError(
            f"{source.where}: the configuration is of {config.n_layer:,} layers, and there are"
            f" {len(source.shapes)} tensors"
        )


def _places(
    shapes: dict[str, torch.Size], config: GPTConfig, layout: Layout, source: TensorSource
) -> dict[str, StoredParameter]:
    """Where each parameter is stored. A file of the base model alone has no prefix."""
    places = {name: stored_parameter(name, shape, config, layout) for name, shape in shapes.items()}
    if source.shapes and not any(name.startswith(layout.prefix) for name in source.shapes):
        return {name: place.without_prefix(layout.prefix) for name, place in places.items()}
    return places


def _copy_weights(model: GPT, places: dict[str, StoredParameter], source: TensorSource) -> None:
    parameters = dict(model.named_parameters())
    for parameter, place in places.items():
        for rows, name in zip(parameters[parameter].detach().split(place.rows), place.names):
            tensor = source.read(name)
            check_finite(tensor, name, source.where)
            tensor = source.reorder_rows(name, tensor)
            rows.copy_(tensor.t() if place.transposed else tensor)


def _equal(a: Tensor, b: Tensor) -> bool:
    """True if two matrices are equal in fp32; compared 1,024 rows at a time."""
    return a.shape == b.shape and all(
        x.float().equal(y.float()) for x, y in zip(a.split(1024), b.split(1024))
    )


def tensors_of(model: GPT, family: Family) -> Iterator[NamedTensor]:
    """The tensors that a family's file holds for a model.

    gpt2 and openai-gpt have biases everywhere: those that the model lacks are zeros. A tied head is
    not repeated.
    """
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        yield from _pieces(name, parameter.detach(), model.config, family)
        bias = re.sub(r"^((?:blocks|norm)\..*)weight$", r"\1bias", name)
        if family in ("gpt2", "openai-gpt") and bias not in parameters:
            yield from _pieces(bias, torch.zeros(parameter.shape[0]), model.config, family)


def _pieces(name: str, value: Tensor, config: GPTConfig, family: Family) -> Iterator[NamedTensor]:
    """The tensors that a family's file holds for one parameter of the model."""
    place = stored_parameter(name, value.shape, config, LAYOUTS[family])
    for piece, rows, shape in zip(place.names, value.split(place.rows), place.shapes(value.shape)):
        yield piece, shape, lambda rows=rows: (rows.t() if place.transposed else rows).contiguous()
