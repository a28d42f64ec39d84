"""The named tensors of one checkpoint, read one at a time. Knows no models and no file formats."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from torch import Tensor

from gptx.errors import CheckpointError
from gptx.progress import stage

# Name parts that torch.compile, FSDP and activation checkpointing put before a wrapped module.
_WRAPPED = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# The name of the embedding or head. Group 1 is the prefix that a wrapper around the whole model
# (DistributedDataParallel, PEFT, Lightning, ...) puts before all names.
_PREFIXED_EMBEDDING = re.compile(
    r"(|.*?\.)(?:transformer\.(?:wte|tokens_embed)|model\.embed_tokens"
    r"|wte|tokens_embed|embed_tokens|lm_head)\.weight"
)

# (name, shape, function that returns the tensor): a tensor that is made when it is written
NamedTensor = tuple[str, tuple[int, ...], Callable[[], Tensor]]


def _as_stored(name: str, tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class TensorSource:
    """The tensors of one checkpoint.

    where: names the checkpoint in messages. shapes: the shape of each tensor by name. read: returns
    the tensor of a name. types: how each tensor is stored (F32, BF16, ...). reorder_rows: from a
    tensor's name and stored value, the value with its rows in gptx's order.
    """

    where: str
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], Tensor]
    types: dict[str, str] = field(default_factory=dict)
    reorder_rows: Callable[[str, Tensor], Tensor] = _as_stored


def without_wrappers(source: TensorSource) -> TensorSource:
    """`source` under the model's own tensor names, without those of wrappers around its modules.

    A wrapper around the whole model is recognized as a prefix that all names share; the text of the
    prefix does not matter. Raises CheckpointError if two tensors get the same name.
    """
    names = {_WRAPPED.sub("", name): name for name in source.shapes}
    if len(names) < len(source.shapes):
        twice = next(name for name in source.shapes if names[_WRAPPED.sub("", name)] != name)
        raise CheckpointError(
            f"{source.where}: {twice} is there twice, once under a wrapped module's name"
        )
    prefixes = {match[1] for name in names if (match := _PREFIXED_EMBEDDING.fullmatch(name))}
    if len(prefixes) == 1 and all(name.startswith(tuple(prefixes)) for name in names):
        names = {name.removeprefix(*prefixes): stored for name, stored in names.items()}
    return replace(
        source,
        shapes={name: source.shapes[stored] for name, stored in names.items()},
        read=lambda name: source.read(names[name]),
        types={
            name: source.types[stored] for name, stored in names.items() if stored in source.types
        },
    )


@contextmanager
def showing_progress(source: TensorSource) -> Iterator[TensorSource]:
    """`source`, with its progress on standard error while its tensors are read."""
    with stage("Reading the weights", total=len(source.shapes)) as advance:

        def read(name: str) -> Tensor:
            value = source.read(name)
            advance(1)
            return value

        yield replace(source, read=read)
