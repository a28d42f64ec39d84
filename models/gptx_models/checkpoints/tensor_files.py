"""Weights on disk: safetensors (one file or sharded; PyTorch's .bin as well) as a TensorSource, and writing one file.

Reads and writes tensor by tensor, so the weights are never held twice. Knows nothing of models.
"""

from __future__ import annotations

import json
import os
import struct
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gptx.artifact import json_files
from gptx.artifact.folders import LFS_POINTER, lies_inside
from gptx.errors import CheckpointError, shown
from gptx_models.checkpoints.weights import TensorSource, check_finite, some, unwrapped

Stored = Literal["F32", "F16", "BF16"]  # as safetensors calls them
STORED: dict[Stored, torch.dtype] = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_TYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def open_folder(folder: Path) -> TensorSource:
    """The tensors of a checkpoint folder. Raises CheckpointError."""
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
    return unwrapped(whole)


def open_file(path: Path) -> TensorSource:
    """The tensors of one .safetensors or .bin. Raises CheckpointError."""
    check_file(path)
    return _open_bin(path) if path.suffix == ".bin" else _open_safetensors(path)


_STEMS = ("model.safetensors", "pytorch_model.bin")
_OTHERS = (
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".h5",
    ".msgpack",
    ".gguf",
    ".onnx",
)  # where weights may be


def has_weights(folder: Path) -> bool:
    """Whether a model's weights stand in a folder, whole or in shards."""
    return any((folder / name).exists() for stem in _STEMS for name in (stem, f"{stem}.index.json"))


def weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or the shards that its index names, or the same of pytorch_model.bin."""
    for stem in _STEMS:
        if os.path.lexists(folder / stem):  # a link that leads nowhere is not passed over
            return [folder / stem]
        index = folder / f"{stem}.index.json"
        if index.exists():
            places = read_json(index).get("weight_map")
            if not isinstance(places, dict) or not all(
                isinstance(name, str) for name in places.values()
            ):
                raise CheckpointError(
                    f"{index} has no weight_map from tensors to files: copy or download it again"
                )
            names = sorted(set(places.values()))
            missing = [
                name[:200] for name in names if not os.path.exists(folder / name)
            ]  # too long ones too
            if missing or not names:
                raise CheckpointError(
                    f"{index} names {len(names)} files, and these are missing: {some(missing)}"
                )
            if outside := [name for name in names if not lies_inside(folder / name, folder)]:
                raise CheckpointError(
                    f"{index} names files outside its folder: {', '.join(outside)}"
                )
            return [folder / name for name in names]
    others = sorted(file.name for file in folder.iterdir() if file.suffix in _OTHERS)
    found = f", and found {some(others)}" if others else ""
    raise CheckpointError(
        f"{folder} holds no weights: expected model.safetensors or pytorch_model.bin, or an index of such files{found}"
    )


def check_file(path: Path) -> None:
    """Raise CheckpointError where a file is missing, empty, or Git LFS left a pointer instead of it."""
    if not path.is_file():
        if path.is_symlink() and not os.path.exists(path):
            raise CheckpointError(
                f"{path} is a link to {os.readlink(path)}, which is not there: copy or download it again"
            )
        raise CheckpointError(
            f"{path} does not exist" if not path.exists() else f"{path} is not a file"
        )
    with path.open("rb") as file:
        start = file.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        raise CheckpointError(
            f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in {path.parent}"
        )
    if not start:
        raise CheckpointError(f"{path} is empty: copy or download it again")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises CheckpointError."""
    return json_files.read_json(path, CheckpointError)


def read_text(path: Path) -> str:
    """A UTF-8 file's text. Raises CheckpointError."""
    check_file(path)
    try:
        return path.read_text("utf-8")
    except UnicodeError as error:
        raise CheckpointError(f"{path} is not UTF-8: {error}") from error


def _open_safetensors(path: Path) -> TensorSource:
    try:
        file = safe_open(path, framework="pt")
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({error}): copy or download it again"
        ) from error
    shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
    return TensorSource(
        str(path),
        shapes,
        file.get_tensor,
        {name: part.get_dtype() for name, part in slices.items()},
    )


def _open_bin(path: Path) -> TensorSource:
    return of_state_dict(
        load_torch_file(path, advice="save it again as safetensors, with PyTorch"), str(path)
    )


def of_state_dict(tensors: Any, where: str) -> TensorSource:
    """Tensors by name that PyTorch has opened already, as a TensorSource. Raises CheckpointError."""
    if not isinstance(tensors, dict):
        raise CheckpointError(
            f"{where} is not a state_dict: it holds {shown(tensors)}, expected tensors by name"
        )
    other = [problem for name, value in tensors.items() if (problem := _no_weight(name, value))]
    if other:
        more = f" and {len(other) - 3} more" if len(other) > 3 else ""
        raise CheckpointError(
            f"{where} is not a state_dict, tensors by name: {', '.join(other[:3])}{more}:"
            " save the model's own state_dict() with torch.save"
        )
    _check_not_shared(tensors, where)
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    types = {
        name: _TYPES.get(value.dtype, str(value.dtype).removeprefix("torch."))
        for name, value in tensors.items()
    }
    return TensorSource(where, shapes, lambda name: tensors[name].detach(), types)


def _check_not_shared(tensors: dict[str, Tensor], where: str) -> None:
    """Views let a file of a few bytes claim a model of any size. Embedding and head may be one tensor, so twice the bytes
    is right."""
    storages = {
        value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
        for value in tensors.values()
    }
    claimed, there = (
        sum(value.numel() * value.element_size() for value in tensors.values()),
        sum(storages.values()),
    )
    if claimed > 2 * there:
        raise CheckpointError(
            f"{where}: its tensors would have {claimed:,} bytes, and the file holds {there:,} of them: many are views of"
            " the same memory"
        )


def _no_weight(name: Any, value: Any) -> str | None:
    """Why an entry of a state_dict is no weight; None where it is one."""
    if not isinstance(name, str):
        return f"{name!r:.80} is no name"
    if not isinstance(value, Tensor):
        return f"{name:.80} is of type {type(value).__name__}"
    plain = value.layout == torch.strided and not value.is_nested and not value.is_meta
    return None if plain else f"{name:.80} is sparse, nested or without values"


_ALLOW = "read it with --allow-pickle, which runs code from the file"


def load_torch_file(path: Path, *, allow_pickle: bool = False, advice: str = _ALLOW) -> Any:
    """What torch.save wrote: tensors and plain values only, unless `allow_pickle`. `advice`: what to do with a file that
    holds more and that is trusted. Raises CheckpointError."""
    import pickle

    check_file(path)
    try:
        return torch.load(
            path, map_location="cpu", weights_only=not allow_pickle, mmap=zipfile.is_zipfile(path)
        )
    except pickle.UnpicklingError as error:
        first = str(error).replace("\n", " ").split(". ")[0]
        raise CheckpointError(
            f"{path} holds Python objects beyond tensors and plain values, or is broken ({first}): where you trust"
            f" who wrote it, {advice}"
        ) from error
    except Exception as error:  # what is no pickle can raise anything
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path} cannot be read by torch.load, the file may be cut short: {first}"
        ) from error


def write_safetensors(
    path: Path,
    tensors: Iterable[tuple[str, tuple[int, ...], Callable[[], Tensor]]],
    stored: Stored = "F32",
) -> None:
    """Write tensors, made one at a time, as a safetensors file (the library's writer holds copies of all)."""
    dtype = STORED[stored]
    parts = list(tensors)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape, _ in parts:
        start, end = end, end + dtype.itemsize * _count(shape)
        header[name] = {"dtype": stored, "shape": list(shape), "data_offsets": [start, end]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for name, shape, give in parts:
            value = give().to(dtype)
            if dtype != torch.float32:  # what fp16 cannot hold
                check_finite(value, f"{name}, in {stored},", str(path))
            assert tuple(value.shape) == tuple(shape), (
                f"{name}: {tuple(value.shape)} is not {shape}"
            )
            file.write(value.contiguous().view(torch.uint8).numpy().data)


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
