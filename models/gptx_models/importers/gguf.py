"""A GGUF file of architecture llama or gpt2 -> GPT, in fp32, and the file's own blocks.

The `gguf` package dequantizes the tensors, one at a time. llama.cpp stores the two rows of a rotary
pair of Q and K next to each other; they are reordered into halves here, as are their blocks.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gptx.artifact.hashes import sha256
from gptx.errors import CheckpointError
from gptx_models.checkpoints.family import family_of
from gptx_models.checkpoints.gguf_blocks import FLOAT_TYPES, KEPT_TYPES, GgufRows
from gptx_models.checkpoints.hf_names import (
    LAYOUTS,
    Layout,
    stored_parameter,
    to_halves,
    written_names,
)
from gptx_models.checkpoints.tensor_source import TensorSource, showing_progress
from gptx_models.checkpoints.tokenizer_files import TokenizerFiles
from gptx_models.checkpoints.weights import build
from gptx_models.gpt.config import GPTConfig
from gptx_models.gpt.model import GPT
from gptx_models.importers.gguf_config import gguf_config
from gptx_models.importers.gguf_file import StoredTensor, open_gguf
from gptx_models.importers.gguf_tokenizer import read_generation, read_tokenizer
from gptx_models.importers.imported import Imported, Tell, quiet

_COMMON_NAMES = {
    "norm1": ("blk.{i}.attn_norm",),
    "attn.out": ("blk.{i}.attn_output",),
    "norm2": ("blk.{i}.ffn_norm",),
    "mlp.down": ("blk.{i}.ffn_down",),
    "wte": ("token_embd",),
    "norm": ("output_norm",),
    "head": ("output",),
}
GGUF_LAYOUTS = {  # by architecture
    "llama": Layout(
        {
            **_COMMON_NAMES,
            "attn.qkv": tuple(f"blk.{{i}}.attn_{part}" for part in "qkv"),
            "mlp.up": ("blk.{i}.ffn_gate", "blk.{i}.ffn_up"),
        },
        ignored=r"^rope_freqs\.weight$|\.attn_rot_embd$",
    ),
    "gpt2": Layout(
        {
            **_COMMON_NAMES,
            "wpe": ("position_embd",),
            "attn.qkv": ("blk.{i}.attn_qkv",),
            "mlp.up": ("blk.{i}.ffn_up",),
        },
        ignored=r"^blk\.\d+\.attn\.(masked_)?bias$",
    ),
}


def import_gguf(path: Path, *, tokenizer_wanted: bool = True, tell: Tell = quiet) -> Imported:
    """Read one GGUF file.

    The ids of special tokens are read even if the tokenizer is not wanted. `tell` is called with a
    line for what is assumed or left out. Raises CheckpointError.
    """
    metadata, tensors = open_gguf(path)
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in GGUF_LAYOUTS:
        raise CheckpointError(
            f"{path} is of architecture {architecture!r:.80}, and of GGUF files gptx covers"
            f" {' and '.join(GGUF_LAYOUTS)}: export the original Hugging Face model with"
            " `gptx export --via optimum`"
        )
    config = gguf_config(metadata, tensors, str(path))
    tokenizer = (
        read_tokenizer(metadata, str(path), tell=tell)
        if tokenizer_wanted
        else TokenizerFiles(generation=read_generation(metadata, str(path), tell=tell))
    )
    layout = GGUF_LAYOUTS[architecture]
    with showing_progress(_source(path, tensors, config, architecture)) as source:
        model = build(config, layout, source)
    if (path.parent / "adapter_config.json").exists():
        tell(f"{path.parent} holds an adapter too, which is not applied")
    names = written_names(model, layout, LAYOUTS[family_of(config)])
    about = {
        **_origin(path, metadata),
        "tensor_types": {names[name]: t.type.name for name, t in tensors.items() if name in names},
    }
    licence = metadata.get("general.license")
    if isinstance(licence, str) and licence:
        about["licence"] = licence
    blocks = _blocks(model, tensors, architecture)
    return Imported(model, about, tokenizer.files, tokenizer.generation, blocks=blocks)


def _blocks(
    model: GPT, tensors: dict[str, StoredTensor], architecture: str
) -> dict[str, list[GgufRows]]:
    """The rows of each quantized matrix as the file stores them, by the GPT's own names.

    Matrices of floats are left out: the fp32 weights hold their values.
    """
    found: dict[str, list[GgufRows]] = {}
    for parameter, weight in model.named_parameters():
        place = stored_parameter(parameter, weight.shape, model.config, GGUF_LAYOUTS[architecture])
        parts = [tensors.get(name) for name in place.names]
        if weight.ndim != 2 or all(part is None or part.type.name in FLOAT_TYPES for part in parts):
            continue
        found[parameter] = [
            GgufRows(part.type.name, part.shape[0], _rows(part, model.config, architecture))
            for part in parts
            if part is not None
        ]
    return found


def _rows(part: StoredTensor, config: GPTConfig, architecture: str) -> np.ndarray | None:
    """The bytes of a tensor's rows, in gptx's order; None for a type whose blocks are not kept."""
    if part.type.name not in KEPT_TYPES:
        return None
    heads = _rotary_heads(part.name, config, architecture)
    if heads is None:
        return part.data
    return to_halves(torch.from_numpy(part.data.copy()), heads).numpy()


def _rotary_heads(name: str, config: GPTConfig, architecture: str) -> int | None:
    """The heads of Q or K, whose rows are stored as rotary pairs; None for other tensors."""
    part = re.search(r"\.attn_([qk])\.", name)
    if part is None or architecture != "llama":
        return None
    return config.n_head if part[1] == "q" else config.n_kv_head


def _origin(path: Path, metadata: dict[str, Any]) -> dict[str, Any]:
    """The fields of gptx_source.json that say which file the model comes from."""
    name = metadata.get("general.name")
    return {
        "format": "gguf",
        "name": name if isinstance(name, str) and name else path.stem,
        "sha256": {path.name: sha256(path)},
    }


def _source(
    path: Path, tensors: dict[str, StoredTensor], config: GPTConfig, architecture: str
) -> TensorSource:
    """The tensors of a file, dequantized when they are read."""

    def read(name: str) -> Tensor:
        return torch.from_numpy(tensors[name].values(str(path)))

    def reorder_rows(name: str, value: Tensor) -> Tensor:
        heads = _rotary_heads(name, config, architecture)
        return value if heads is None else to_halves(value, heads)

    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    return TensorSource(str(path), shapes, read, reorder_rows=reorder_rows)
