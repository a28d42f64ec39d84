"""A checkpoint folder's weights as a TensorSource, and the writer of model.safetensors.

Both work tensor by tensor, so the weights are never in memory twice. Knows nothing of models.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open

from gptx.errors import CheckpointError
from gptx_models.checkpoints.check_weights import check_finite
from gptx_models.checkpoints.read_files import check_file
from gptx_models.checkpoints.tensor_source import NamedTensor, TensorSource, without_wrappers
from gptx_models.checkpoints.torch_files import load_torch_file, state_dict_source
from gptx_models.checkpoints.weight_files import weight_files

WeightType = Literal["F32", "F16", "BF16"]  # safetensors' names
TORCH_TYPES: dict[WeightType, torch.dtype] = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


def open_folder(folder: Path) -> TensorSource:
    """The tensors of a checkpoint folder, under the model's own names. Raises CheckpointError."""
    files = weight_files(folder)
    sources: dict[str, TensorSource] = {}
    for file in files:
        source = open_file(file)
        if twice := next((name for name in source.shapes if name in sources), None):
            raise CheckpointError(
                f"{folder} has the tensor {twice} in two files, {sources[twice].where} and {file}"
            )
        sources |= dict.fromkeys(source.shapes, source)
    whole = TensorSource(
        str(files[0] if len(files) == 1 else folder),
        {name: source.shapes[name] for name, source in sources.items()},
        lambda name: sources[name].read(name),
        {name: source.types[name] for name, source in sources.items()},
    )
    return without_wrappers(whole)


def open_file(path: Path) -> TensorSource:
    """The tensors of one .safetensors or .bin file. Raises CheckpointError."""
    check_file(path)
    if path.suffix == ".bin":
        advice = "save it again as safetensors, with PyTorch"
        return state_dict_source(load_torch_file(path, advice=advice), str(path))
    return _open_safetensors(path)


def _open_safetensors(path: Path) -> TensorSource:
    try:
        file = safe_open(path, framework="pt")
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({error}): copy or download it again"
        ) from error
    return TensorSource(
        str(path),
        {name: tuple(part.get_shape()) for name, part in slices.items()},
        file.get_tensor,
        {name: part.get_dtype() for name, part in slices.items()},
    )


def write_safetensors(
    path: Path, tensors: Iterable[NamedTensor], weight_type: WeightType = "F32"
) -> None:
    """Write tensors to a safetensors file. Each tensor is made just before it is written.

    The header is written here because the library's save_file needs all tensors in memory at once.
    Raises CheckpointError if a value is too large for `weight_type`.
    """
    dtype = TORCH_TYPES[weight_type]
    listed = list(tensors)
    with path.open("wb") as file:
        file.write(_header(listed, weight_type))
        for name, shape, make in listed:
            value = make().to(dtype)
            if dtype != torch.float32:  # a value may be beyond fp16's range
                check_finite(value, f"{name}, in {weight_type},", str(path))
            assert tuple(value.shape) == tuple(shape), (
                f"{name}: {tuple(value.shape)} is not {shape}"
            )
            file.write(value.contiguous().view(torch.uint8).numpy().data)


def _header(tensors: list[NamedTensor], weight_type: WeightType) -> bytes:
    """The header of a safetensors file: its length in 8 bytes, then JSON, padded to 8 bytes."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape, _ in tensors:
        start, end = end, end + TORCH_TYPES[weight_type].itemsize * math.prod(shape)
        entries[name] = {"dtype": weight_type, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
