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

from gptx.errors import CheckpointError, GptxError
from gptx.progress import note, stage
from gptx_models.checkpoints.hf_config import Family
from gptx_models.checkpoints.hf_names import LAYOUTS, Layout, Place, place_of
from gptx_models.gpt.config import GPTConfig
from gptx_models.gpt.model import GPT

# types that hold a weight only with a scale beside it, or that hold something else
_NUMBERS = re.compile(r"I\d|U\d|BOOL|F[468]_|C\d|q?u?int|float8|bool|complex")
# the embedding's name in a family's file (or the head's), after the names of the wrappers around the model
# (DistributedDataParallel, PEFT, Lightning, ...)
_AROUND = re.compile(
    r"(|.*?\.)(?:transformer\.(?:wte|tokens_embed)|model\.embed_tokens|wte|tokens_embed|embed_tokens|lm_head)\.weight"
)
# torch.compile, FSDP and activation checkpointing wrap modules anywhere
_WRAPPED = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_ADAPTER = re.compile(
    r"\.(base_layer|lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|modules_to_save|original_module)\."
)
_TOLD = 20  # names in a message
_PIECE = 1 << 22  # values that are looked at together


@dataclass(frozen=True)
class TensorSource:
    """Named tensors of one checkpoint, read one at a time. `where` names it in messages."""

    where: str
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], Tensor]
    types: dict[str, str] = field(default_factory=dict)  # how each is stored: F32, BF16, ...
    # makes of a stored tensor the one that the layout means, where the file has its rows in another order
    arrange: Callable[[str, Tensor], Tensor] = lambda name, stored: stored


def unwrapped(source: TensorSource) -> TensorSource:
    """`source` with the model's own names, without those of wrappers that were around it when it was saved.

    A wrapper around the whole model stands before all names, whatever it is called.
    """
    names = {_WRAPPED.sub("", name): name for name in source.shapes}
    if len(names) < len(source.shapes):
        twice = next(name for name in source.shapes if names[_WRAPPED.sub("", name)] != name)
        raise CheckpointError(f"{source.where}: {twice} is there twice, once as a wrapped module's")
    around = {found[1] for name in names if (found := _AROUND.fullmatch(name))}
    if len(around) == 1 and all(name.startswith(tuple(around)) for name in names):
        names = {name.removeprefix(*around): theirs for name, theirs in names.items()}
    return replace(
        source,
        shapes={ours: source.shapes[theirs] for ours, theirs in names.items()},
        read=lambda name: source.read(names[name]),
        types={
            ours: source.types[theirs] for ours, theirs in names.items() if theirs in source.types
        },
    )


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
    """The GPT in fp32 and eval mode, its weights read from `source` one by one. Raises CheckpointError.

    Nothing of the model's size is allocated before the file is known to have it.
    """
    if config.n_layer > max(
        1000, len(source.shapes)
    ):  # only to list what is missing would take minutes
        raise CheckpointError(
            f"{source.where}: the configuration is of {config.n_layer:,} layers, and there are {len(source.shapes)} tensors"
        )
    with torch.device("meta"):
        shapes = {
            name: p.shape for name, p in GPT(config).named_parameters()
        }  # a tied head is in it once, as wte
    places = {name: place_of(name, shape, config, layout) for name, shape in shapes.items()}
    if source.shapes and not any(name.startswith(layout.prefix) for name in source.shapes):
        places = {name: place.without(layout.prefix) for name, place in places.items()}
    head = f"{layout.names.get('head', ('head',))[0]}.weight"
    tied = config.head_is_embedding and head in source.shapes
    embedding = places["wte.weight"].names[0]
    if (
        tied and embedding not in source.shapes
    ):  # of two names for one tensor, some writers keep the last
        places["wte.weight"], tied = replace(places["wte.weight"], names=(head,)), False
    check(places, shapes, source, layout, head=head if tied else None, classes=config.n_class > 0)
    with _WithoutInitialization():
        model = GPT(config)
    parameters = dict(model.named_parameters())
    for name, place in places.items():
        for part, piece in zip(parameters[name].detach().split(place.rows), place.names):
            tensor = source.read(piece)
            check_finite(tensor, piece, source.where)
            tensor = source.arrange(piece, tensor)
            part.copy_(tensor.t() if place.transposed else tensor)
    if tied and not _equal(source.read(head), parameters["wte.weight"].detach()):
        raise CheckpointError(
            f"{source.where}: {head} differs from {embedding}, and the configuration ties the two (tie_word_embeddings):"
            f" say false there if the head is meant, or take {head} out of the file, as transformers does when it loads it"
        )
    return model.eval()


def check_finite(
    value: Tensor, name: str, where: str, error: type[GptxError] = CheckpointError
) -> None:
    """Raise `error` for a tensor with NaN or infinity in it, naming the first place.

    The sum of a piece is finite where all of it is, which takes one pass over the memory and no copy of the tensor.
    """
    for number, piece in enumerate(value.reshape(-1).split(_PIECE)):
        if torch.isfinite(piece.sum(dtype=torch.float32)):
            continue
        bad = (~torch.isfinite(piece)).nonzero()
        if len(bad):  # finite numbers may have an infinite sum
            first = int(bad[0])
            at = torch.unravel_index(torch.tensor(number * _PIECE + first), value.shape)
            raise error(
                f"{where}: {name} holds {float(piece[first])} at {[int(index) for index in at]}, which is no weight:"
                " the file is damaged, or its training had diverged"
            )


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and all(
        x.float().equal(y.float()) for x, y in zip(a.split(1024), b.split(1024))
    )


def check(
    places: dict[str, Place],
    shapes: dict[str, torch.Size],
    source: TensorSource,
    layout: Layout,
    *,
    head: str | None,
    classes: bool,
) -> None:
    """Raise CheckpointError that names missing and unexpected tensors and wrong shapes, and tell of heads for other tasks.

    head: a tensor that is there besides, which repeats the embedding. classes: the head is a classification head.
    """
    expected = {
        piece: piece_shape
        for name, place in places.items()
        for piece, piece_shape in zip(place.names, place.shapes(shapes[name]))
    }
    found = {name for name in source.shapes if not re.search(layout.ignored, name)} - {head}
    missing = [name for name in expected if name not in source.shapes]
    unexpected, others = sorted(found - set(expected)), []
    if any(name.startswith(layout.prefix) for name in expected) and layout.prefix:
        own = (layout.prefix, "score." if classes else "lm_head.")
        others = [name for name in unexpected if not name.startswith(own)]
        unexpected = [name for name in unexpected if name.startswith(own)]
    wrong = [
        f"{name} is {list(source.shapes[name])} where the configuration says {list(shape)}"
        for name, shape in expected.items()
        if name in source.shapes and tuple(source.shapes[name]) != shape
    ]
    problems = []
    quantized = [
        f"{name} is {source.types[name]}"
        for name in expected
        if _NUMBERS.match(source.types.get(name, ""))
    ]
    if quantized:
        problems.append(
            f"expected weights of 16, 32 or 64 bits in floating point: {some(quantized)}"
        )
    if adapter := [name for name in found if _ADAPTER.search(name)]:
        problems.append(
            f"they are of PEFT's model with an adapter that was not merged ({some(sorted(adapter))}): merge it there with"
            " merge_and_unload(), and save what that gives"
        )
    elif missing or unexpected:
        problems += [f"missing tensors: {some(missing)}"] if missing else []
        problems += [f"unexpected tensors: {some(unexpected)}"] if unexpected else []
    if wrong:
        problems.append(f"wrong shapes: {some(wrong)}")
    if problems:
        raise CheckpointError(
            f"{source.where}: the weights do not fit the configuration: {'; '.join(problems)}"
        )
    if others:
        note(f"{source.where} holds tensors of another head, which are left out: {some(others)}")


def some(names: list[str]) -> str:
    """The first of many names, for a message."""
    return ", ".join(names[:_TOLD]) + (
        f" and {len(names) - _TOLD} more" if len(names) > _TOLD else ""
    )


def tensors_of(
    model: GPT, family: Family
) -> Iterator[tuple[str, tuple[int, ...], Callable[[], Tensor]]]:
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
