"""The weights of a GPT out of named tensors (`build`), and back into them (`tensors_of`), one tensor at a time.

hf_layout says which names; here they are checked, all problems told at once, and copied. Knows no file formats.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gptx.errors import CheckpointError
from gptx.progress import stage
from gptx_models.config import GPTConfig
from gptx_models.hf_config import Family
from gptx_models.hf_layout import LAYOUTS, Layout, Place, place_of
from gptx_models.model import GPT

_NUMBERS = re.compile(r"I\d|U\d|BOOL|F[468]_|u?int|float8|bool")  # types that hold a weight only with a scale beside it


@dataclass(frozen=True)
class TensorSource:
    """Named tensors of one checkpoint, read one at a time. `where` names it in messages."""

    where: str
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], Tensor]
    types: dict[str, str] = field(default_factory=dict)  # how each is stored: F32, BF16, ...


@contextmanager
def shown(source: TensorSource) -> Iterator[TensorSource]:
    """`source`, with its progress on standard error while its tensors are read."""
    with stage("Reading the weights", total=len(source.shapes)) as advance:

        def read(name: str) -> Tensor:
            value = source.read(name)
            advance(1)
            return value

        yield replace(source, read=read)


class _WithoutInitialization(TorchFunctionMode):
    """Leaves new weights as they are, in memory that is not touched yet: they come from a file."""

    _fills = (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self._fills:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def build(config: GPTConfig, layout: Layout, source: TensorSource) -> GPT:
    """The GPT in fp32 and eval mode, its weights read from `source` one by one. Raises CheckpointError."""
    with _WithoutInitialization():
        model = GPT(config)
    parameters = dict(model.named_parameters())  # a tied head is in it once, as wte
    places = {name: place_of(name, p.shape, config, layout) for name, p in parameters.items()}
    if source.shapes and not any(name.startswith(layout.prefix) for name in source.shapes):
        places = {name: place.without(layout.prefix) for name, place in places.items()}
    shapes = {name: p.shape for name, p in parameters.items()}
    check(places, shapes, source, layout, tied=config.tied)
    for name, place in places.items():
        for part, piece in zip(parameters[name].detach().split(place.rows), place.names):
            tensor = source.read(piece)
            part.copy_(tensor.t() if place.transposed else tensor)
    return model.eval()


def check(
    places: dict[str, Place], shapes: dict[str, torch.Size], source: TensorSource, layout: Layout, *, tied: bool
) -> None:
    """Raise CheckpointError that names every missing and every unexpected tensor and every wrong shape."""
    expected = {
        piece: piece_shape
        for name, place in places.items()
        for piece, piece_shape in zip(place.names, place.shapes(shapes[name]))
    }
    tied_head = {f"{n}.weight" for n in layout.names.get("head", ("head",))} if tied else set()
    found = {name for name in source.shapes if not re.search(layout.ignored, name)} - tied_head
    missing = [name for name in expected if name not in source.shapes]
    unexpected = sorted(found - set(expected))
    wrong = [
        f"{name} is {list(source.shapes[name])} where the configuration says {list(shape)}"
        for name, shape in expected.items()
        if name in source.shapes and tuple(source.shapes[name]) != shape
    ]
    problems = []
    quantized = [f"{name} is {source.types[name]}" for name in expected if _NUMBERS.match(source.types.get(name, ""))]
    if quantized:
        problems.append(f"expected weights of 16, 32 or 64 bits in floating point: {', '.join(quantized)}")
    if missing:
        problems.append(f"missing tensors: {', '.join(missing)}")
    if unexpected:
        problems.append(f"unexpected tensors: {', '.join(unexpected)}")
    if wrong:
        problems.append(f"wrong shapes: {', '.join(wrong)}")
    if problems:
        raise CheckpointError(f"{source.where}: the weights do not fit the configuration: {'; '.join(problems)}")


def tensors_of(model: GPT, family: Family) -> Iterator[tuple[str, tuple[int, ...], Callable[[], Tensor]]]:
    """What a family's file holds of `model`: (name, shape, function that gives the tensor), one after another.

    The biases that gpt2 and openai-gpt always have and this model does not are zeros. A tied head is not repeated.
    """
    own = dict(model.named_parameters())
    for name, parameter in own.items():
        yield from _pieces(name, parameter.detach(), model.config, family)
        bias = re.sub(r"^((?:blocks|norm)\..*)weight$", r"\1bias", name)
        if family in ("gpt2", "openai-gpt") and bias not in own:
            yield from _pieces(bias, torch.zeros(parameter.shape[0]), model.config, family)


def _pieces(
    name: str, value: Tensor, config: GPTConfig, family: Family
) -> Iterator[tuple[str, tuple[int, ...], Callable[[], Tensor]]]:
    place = place_of(name, value.shape, config, LAYOUTS[family])
    for piece, part, shape in zip(place.names, value.split(place.rows), place.shapes(value.shape)):
        yield piece, shape, lambda part=part: (part.t() if place.transposed else part).contiguous()
