"""Files of torch.save as tensors: pytorch_model.bin and the checkpoints of training loops.

Read with torch.load, which runs no code from the file (weights_only) unless that is allowed.
"""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptx.errors import CheckpointError, first_of, shown
from gptx_models.checkpoints.read_files import check_file
from gptx_models.checkpoints.tensor_source import TensorSource

# safetensors' names of PyTorch's types
_TYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_ALLOW_PICKLE = "read it with --allow-pickle, which runs code from the file"


def load_torch_file(path: Path, *, allow_pickle: bool = False, advice: str = _ALLOW_PICKLE) -> Any:
    """The object in a file of torch.save, on the CPU, its tensors mapped from the file.

    allow_pickle: objects other than tensors and plain values are allowed, which may run code from
    the file. advice: ends the error for a file with such objects, after "if you trust its author".
    Raises CheckpointError.
    """
    check_file(path)
    try:
        return torch.load(
            path, map_location="cpu", weights_only=not allow_pickle, mmap=zipfile.is_zipfile(path)
        )
    except pickle.UnpicklingError as error:
        first = str(error).replace("\n", " ").split(". ")[0]
        raise CheckpointError(
            f"{path} holds Python objects beyond tensors and plain values, or is broken ({first}):"
            f" if you trust its author, {advice}"
        ) from error
    except Exception as error:  # a file that is no pickle can raise anything
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path} cannot be read by torch.load, the file may be cut short: {first}"
        ) from error


def state_dict_source(tensors: Any, where: str) -> TensorSource:
    """A state_dict that PyTorch has loaded, as a TensorSource. `where` names it in messages.

    Raises CheckpointError if it holds anything but named dense tensors.
    """
    if not isinstance(tensors, dict):
        raise CheckpointError(
            f"{where} is not a state_dict: it holds {shown(tensors)}, expected tensors by name"
        )
    problems = [fault for name, value in tensors.items() if (fault := _fault(name, value))]
    if problems:
        raise CheckpointError(
            f"{where} is not a state_dict, tensors by name: {first_of(problems, 3)}:"
            " save the model's own state_dict() with torch.save"
        )
    _check_not_shared(tensors, where)
    types = {
        name: _TYPES.get(value.dtype, str(value.dtype).removeprefix("torch."))
        for name, value in tensors.items()
    }
    return TensorSource(
        where,
        {name: tuple(value.shape) for name, value in tensors.items()},
        lambda name: tensors[name].detach(),
        types,
    )


def _fault(name: Any, value: Any) -> str | None:
    """Why an entry of a state_dict is not a named weight; None if it is one."""
    if not isinstance(name, str):
        return f"{name!r:.80} is no name"
    if not isinstance(value, Tensor):
        return f"{name:.80} is of type {type(value).__name__}"
    dense = value.layout == torch.strided and not value.is_nested and not value.is_meta
    return None if dense else f"{name:.80} is sparse, nested or without values"


def _check_not_shared(tensors: dict[str, Tensor], where: str) -> None:
    """Raise CheckpointError if the tensors claim more than twice the bytes that the file holds.

    Views of one storage let a file of a few bytes claim a model of any size. Twice is allowed, as
    embedding and head may be one tensor.
    """
    storages = {
        value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
        for value in tensors.values()
    }
    claimed = sum(value.numel() * value.element_size() for value in tensors.values())
    stored = sum(storages.values())
    if claimed > 2 * stored:
        raise CheckpointError(
            f"{where}: its tensors would have {claimed:,} bytes, and the file holds {stored:,} of"
            " them: many are views of the same memory"
        )
