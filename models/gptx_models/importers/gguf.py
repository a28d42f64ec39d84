"""A GGUF file of architecture llama or gpt2 -> our GPT, dequantized tensor by tensor to fp32 by the `gguf` package.

llama.cpp stores the rows of Q and K in the order of interleaved rotary pairs; they are put back into halves here.
The tokenizer is made by gguf_tokenizer.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, ReaderTensor, dequantize
from torch import Tensor

from gptx.errors import CheckpointError
from gptx_models.attention import rope_tables
from gptx_models.config import GPTConfig
from gptx_models.hf_config import family_of
from gptx_models.hf_layout import LAYOUTS, Layout, to_halves, written_names
from gptx_models.importers.gguf_tokenizer import read_tokenizer
from gptx_models.importers.imported import Imported, Tell, quiet
from gptx_models.tensor_files import check_file, sha256
from gptx_models.tokenizer_files import TokenizerFiles
from gptx_models.weights import TensorSource, build, shown

_BLOCK = {
    "norm1": ("blk.{i}.attn_norm",),
    "attn.out": ("blk.{i}.attn_output",),
    "norm2": ("blk.{i}.ffn_norm",),
    "mlp.down": ("blk.{i}.ffn_down",),
    "wte": ("token_embd",),
    "norm": ("output_norm",),
    "head": ("output",),
}
GGUF_LAYOUTS = {
    "llama": Layout(
        {
            **_BLOCK,
            "attn.qkv": tuple(f"blk.{{i}}.attn_{part}" for part in "qkv"),
            "mlp.up": ("blk.{i}.ffn_gate", "blk.{i}.ffn_up"),
        },
        ignored=r"^rope_freqs\.weight$|\.attn_rot_embd$",
    ),
    "gpt2": Layout(
        {**_BLOCK, "wpe": ("position_embd",), "attn.qkv": ("blk.{i}.attn_qkv",), "mlp.up": ("blk.{i}.ffn_up",)},
        ignored=r"^blk\.\d+\.attn\.(masked_)?bias$",
    ),
}
_NOT_COMPUTED = ("attention.scale", "logit_scale", "embedding_scale", "residual_scale", "attention.clamp_kqv")


def import_gguf(path: Path, *, tokenizer_wanted: bool = True, tell: Tell = quiet) -> Imported:
    """Read one GGUF file whole, but for the tokenizer where it is not wanted. Raises CheckpointError."""
    metadata, tensors = open_gguf(path)
    architecture = metadata.get("general.architecture")
    if architecture not in GGUF_LAYOUTS:
        raise CheckpointError(
            f"{path} is of architecture {architecture!r}, and of GGUF files gptx covers {' and '.join(GGUF_LAYOUTS)}: "
            "export the original Hugging Face model with `gptx export --via optimum`"
        )
    config = _config(metadata, tensors, str(path))
    tokenizer = read_tokenizer(metadata, str(path), tell=tell) if tokenizer_wanted else TokenizerFiles()
    layout = GGUF_LAYOUTS[architecture]
    source = _source(path, tensors, config, permuted=architecture == "llama", tied=config.tied)
    with shown(source) as read:
        model = build(config, layout, read)
    names = written_names(model, layout, LAYOUTS[family_of(config)])
    about: dict[str, Any] = {
        "format": "gguf",
        "name": metadata.get("general.name") or path.stem,
        "sha256": {path.name: sha256(path)},
        "tensor_types": {names[name]: t.tensor_type.name for name, t in tensors.items() if name in names},
    }
    if metadata.get("general.license"):
        about["licence"] = metadata["general.license"]
    return Imported(model, about, tokenizer.files, tokenizer.generation)


def open_gguf(path: Path) -> tuple[dict[str, Any], dict[str, ReaderTensor]]:
    """(metadata by key, tensors by name) of a GGUF file; the tensors' data stays on disk. Raises CheckpointError."""
    check_file(path)
    try:
        reader = GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError, UnicodeDecodeError, OverflowError) as error:
        raise CheckpointError(f"{path} is not a whole GGUF file ({error}): copy or download it again") from error
    if metadata.get("split.count", 1) > 1:
        raise CheckpointError(
            f"{path} is one of {metadata['split.count']} parts: join them first with "
            "llama.cpp's `llama-gguf-split --merge FIRST_PART OUT.gguf`"
        )
    return metadata, {tensor.name: tensor for tensor in reader.tensors}


def _config(metadata: dict[str, Any], tensors: dict[str, ReaderTensor], where: str) -> GPTConfig:
    architecture = metadata["general.architecture"]
    fields = _Fields(metadata, architecture)
    shape: dict[str, Any] = {
        "n_ctx": fields.need("context_length"),
        "n_layer": fields.need("block_count"),
        "n_head": fields.need("attention.head_count"),
        "n_embd": fields.need("embedding_length"),
        "n_inner": fields.need("feed_forward_length"),
        "vocab_size": _shape(tensors["token_embd.weight"])[0] if "token_embd.weight" in tensors else 0,
        "tied": _tied(tensors),
    }
    if "token_embd.weight" not in tensors:
        fields.problems.append("the tensor token_embd.weight is missing")
    for name in _NOT_COMPUTED:
        if fields.get(name):
            fields.problems.append(f"{architecture}.{name} is {fields.get(name)}, which gptx's GPT does not compute")
    shape |= _llama(fields, tensors) if architecture == "llama" else _gpt2(fields)
    if fields.problems:
        raise CheckpointError(f"{where}: {'; '.join(fields.problems)}")
    try:
        config = GPTConfig(**shape)
        return _with_rope_factors(config, tensors, where)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: {error}") from error


class _Fields:
    """The metadata of one architecture; problems are collected, to be told all at once."""

    def __init__(self, metadata: dict[str, Any], architecture: str) -> None:
        self.metadata, self.architecture = metadata, architecture
        self.problems: list[str] = []

    def get(self, name: str, default: Any = None) -> Any:
        value = self.metadata.get(f"{self.architecture}.{name}", default)
        if isinstance(value, list):  # one value a layer
            if len(set(value)) != 1:
                self.problems.append(f"{self.architecture}.{name} differs between layers, which gptx's GPT has not")
            return value[0]
        return float(str(np.float32(value))) if isinstance(value, float) else value  # 9.9999997e-06 was 1e-05

    def need(self, name: str) -> Any:
        value = self.get(name)
        if value is None:
            self.problems.append(f"{self.architecture}.{name} is missing")
        return value


def _gpt2(fields: _Fields) -> dict[str, Any]:
    return {"norm_eps": fields.need("attention.layer_norm_epsilon")}


def _llama(fields: _Fields, tensors: dict[str, ReaderTensor]) -> dict[str, Any]:
    heads, width = fields.get("attention.head_count", 1), fields.get("embedding_length", 0)
    head_dim = fields.get("attention.key_length", width // heads)
    if fields.get("attention.value_length", head_dim) != head_dim:
        fields.problems.append("llama.attention.value_length differs from key_length")
    if fields.get("rope.dimension_count", head_dim) != head_dim:
        fields.problems.append(
            f"llama.rope.dimension_count is {fields.get('rope.dimension_count')}, expected the head's {head_dim}"
        )
    if fields.get("expert_count"):
        fields.problems.append(f"it is a mixture of {fields.get('expert_count')} experts, which gptx does not cover")
    window = fields.get("attention.sliding_window", 0)
    return {
        "n_kv_head": fields.get("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "position": "rope",
        "rope_theta": fields.get("rope.freq_base", 10000.0),
        "rope_scaling": _rope_scaling(fields),
        "window": window if 0 < window < fields.get("context_length", 0) else None,
        "activation": "swiglu",
        "norm": "rmsnorm",
        "norm_eps": fields.need("attention.layer_norm_rms_epsilon"),
        "attn_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
    }


def _rope_scaling(fields: _Fields) -> dict[str, Any] | None:
    kind = fields.get("rope.scaling.type", "none")
    factor = fields.get("rope.scaling.factor", fields.get("rope.scale_linear", 1.0))
    if kind not in ("none", "linear"):
        fields.problems.append(f"llama.rope.scaling.type is {kind!r}, expected none or linear")
    return {"rope_type": "linear", "factor": factor} if factor not in (0.0, 1.0) else None


def _with_rope_factors(config: GPTConfig, tensors: dict[str, ReaderTensor], where: str) -> GPTConfig:
    """Llama 3.1's scaling is stored as one factor a frequency, without the numbers it came from: they are tried."""
    if "rope_freqs.weight" not in tensors:
        return config
    stored = _read(tensors["rope_freqs.weight"], where).numpy()
    if np.all(stored == 1.0):
        return config
    for old_context in (8192, 4096, 2048, 16384, 32768, 131072):
        scaling = {
            "rope_type": "llama3",
            "factor": float(stored.max()),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": old_context,
        }
        scaled = replace(config, rope_scaling=scaling)
        if np.allclose(_frequencies(config) / _frequencies(scaled), stored, rtol=1e-4):
            return scaled
    raise CheckpointError(f"{where}: the factors in rope_freqs.weight are not those of Llama 3.1's scaling")


def _frequencies(config: GPTConfig) -> np.ndarray[Any, Any]:
    """The angle of each rotary pair at position 1, at most 1 rad."""
    cos, sin = rope_tables(replace(config, n_ctx=2))
    return np.arctan2(sin[1].double().numpy(), cos[1].double().numpy())


def _tied(tensors: dict[str, ReaderTensor]) -> bool:
    """No output.weight, or one that repeats token_embd.weight byte for byte (as older converters of GPT-2 wrote it)."""
    embedding, head = tensors.get("token_embd.weight"), tensors.get("output.weight")
    if head is None or embedding is None:
        return True
    return head.tensor_type == embedding.tensor_type and np.array_equal(head.data, embedding.data)


def _shape(tensor: ReaderTensor) -> tuple[int, ...]:
    return tuple(int(size) for size in reversed(tensor.shape))


def _source(
    path: Path, tensors: dict[str, ReaderTensor], config: GPTConfig, *, permuted: bool, tied: bool
) -> TensorSource:
    def read(name: str) -> Tensor:
        return _read(tensors[name], str(path))

    def arrange(name: str, value: Tensor) -> Tensor:
        part = re.search(r"\.attn_([qk])\.", name)
        if part and permuted:
            return to_halves(value, config.n_head if part[1] == "q" else config.n_kv_head)
        return value

    return TensorSource(str(path), {name: _shape(tensor) for name, tensor in tensors.items()}, read, arrange=arrange)


def _read(tensor: ReaderTensor, where: str) -> Tensor:
    try:
        return torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
    except NotImplementedError as error:
        raise CheckpointError(
            f"{where}: {tensor.name} is of type {tensor.tensor_type.name}, which the gguf package does not read"
        ) from error
