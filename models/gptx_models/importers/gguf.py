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
from torch import Tensor

from gptx.artifact.bounds import size_problem
from gptx.artifact.hashes import sha256
from gptx.errors import CheckpointError
from gptx_models.checkpoints.family import family_of
from gptx_models.checkpoints.hf_names import LAYOUTS, Layout, to_halves, written_names
from gptx_models.checkpoints.tensor_source import TensorSource, showing_progress
from gptx_models.checkpoints.tokenizer_files import TokenizerFiles
from gptx_models.checkpoints.weights import build
from gptx_models.gpt.attention import rope_tables
from gptx_models.gpt.config import GPTConfig, number_problem
from gptx_models.importers.gguf_file import StoredTensor, open_gguf
from gptx_models.importers.gguf_tokenizer import read_ids, read_tokenizer
from gptx_models.importers.imported import Imported, Tell, quiet

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
        {
            **_BLOCK,
            "wpe": ("position_embd",),
            "attn.qkv": ("blk.{i}.attn_qkv",),
            "mlp.up": ("blk.{i}.ffn_up",),
        },
        ignored=r"^blk\.\d+\.attn\.(masked_)?bias$",
    ),
}
# Keys of an architecture, after its name. What is read is in _config; these change nothing that is computed here.
_HARMLESS = {
    "vocab_size",  # llama.cpp counts the tokens, and here the embedding's rows count
    "tensor_data_layout", "rope.scaling.original_context_length", "rope.scaling.finetuned", "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow", "expert_used_count", "pooling_type", "attention.group_norm_epsilon",
    "attention.group_norm_groups", "attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon",  # of other norms
}  # fmt: skip
# The others that llama.cpp knows (src/llama-arch.cpp) change what is computed, in one architecture or another. Where one
# has another value than these, it is refused; other lists and texts are refused as they are.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("logit_scale", "embedding_scale", "residual_scale"), (0.0, 1.0)),
    "attention.causal": (True,),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_ext_factor": (0.0, -1.0),
}
_OTHERWISE = (0, False)


def import_gguf(path: Path, *, tokenizer_wanted: bool = True, tell: Tell = quiet) -> Imported:
    """Read one GGUF file. Where its tokenizer is not wanted, the ids of its special tokens are read all the same.

    Raises CheckpointError.
    """
    metadata, tensors = open_gguf(path)
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in GGUF_LAYOUTS:
        raise CheckpointError(
            f"{path} is of architecture {architecture!r:.80}, and of GGUF files gptx covers {' and '.join(GGUF_LAYOUTS)}: "
            "export the original Hugging Face model with `gptx export --via optimum`"
        )
    config = _config(metadata, tensors, str(path))
    tokenizer = (
        read_tokenizer(metadata, str(path), tell=tell)
        if tokenizer_wanted
        else TokenizerFiles(generation=read_ids(metadata, str(path), tell=tell))
    )
    layout = GGUF_LAYOUTS[architecture]
    source = _source(path, tensors, config, permuted=architecture == "llama")
    with showing_progress(source) as read:
        model = build(config, layout, read)
    names = written_names(model, layout, LAYOUTS[family_of(config)])
    if (path.parent / "adapter_config.json").exists():
        tell(f"{path.parent} holds an adapter too, which is not applied")
    name, licence = metadata.get("general.name"), metadata.get("general.license")
    about: dict[str, Any] = {
        "format": "gguf",
        "name": name if isinstance(name, str) and name else path.stem,
        "sha256": {path.name: sha256(path)},
        "tensor_types": {names[name]: t.type.name for name, t in tensors.items() if name in names},
    }
    if isinstance(licence, str) and licence:
        about["licence"] = licence
    return Imported(model, about, tokenizer.files, tokenizer.generation)


def _config(metadata: dict[str, Any], tensors: dict[str, StoredTensor], where: str) -> GPTConfig:
    fields = _Fields(metadata, metadata["general.architecture"])
    layers = fields.size("block_count")
    fields.n_layer = layers
    shape: dict[str, Any] = {
        "n_ctx": fields.size("context_length"),
        "n_layer": layers,
        "n_head": fields.size("attention.head_count"),
        "n_embd": fields.size("embedding_length"),
        "n_inner": fields.size("feed_forward_length"),
        "tied": _tied(tensors),
    }
    embedding = tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        fields.problems.append(
            f"the tensor token_embd.weight is {'missing' if embedding is None else 'no matrix'}"
        )
    else:
        shape["vocab_size"] = embedding.shape[0]
    shape |= (_llama if fields.architecture == "llama" else _gpt2)(fields, shape, tensors)
    fields.refuse_others()
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
        self.read: set[str] = set()
        self.n_layer = 0  # once it is known

    def get(self, name: str) -> Any:
        """The value, None where there is none. A list of one value a layer, all alike, is that value."""
        key = f"{self.architecture}.{name}"
        self.read.add(key)
        value = self.metadata.get(key)
        if not isinstance(value, list):
            return (
                float(str(np.float32(value))) if isinstance(value, float) else value
            )  # 9.9999997e-06 was 1e-05
        if len(value) != self.n_layer:
            self.problems.append(
                f"{key} is a list of {len(value)}, expected one value a layer, {self.n_layer}"
            )
        elif any(item != value[0] for item in value):
            self.problems.append(f"{key} differs between layers, which gptx's GPT has not")
        return value[0] if value else None

    def size(self, name: str, default: int | None = None) -> int:
        """A whole number above 0; without a default it must be there."""
        value = self.get(name)
        if value is None:
            self._note(f"{self.architecture}.{name} is missing" if default is None else None)
            return default or 1
        return 1 if self._note(size_problem(f"{self.architecture}.{name}", value)) else value

    def number(self, name: str, default: float | None = None, *, low: float | None = None) -> float:
        """A number above 0, or of at least `low`; without a default it must be there."""
        value = self.get(name)
        if value is None:
            self._note(f"{self.architecture}.{name} is missing" if default is None else None)
            return default or 0.0
        return (
            1.0
            if self._note(number_problem(f"{self.architecture}.{name}", value, low=low))
            else float(value)
        )

    def refuse_others(self) -> None:
        """Note a problem for each key of the architecture that nobody read and that may change what is computed."""
        for key, value in self.metadata.items():
            name = key.removeprefix(f"{self.architecture}.")
            if name == key or key in self.read or name in _HARMLESS:
                continue
            if isinstance(value, list | str) or value not in _NEUTRAL.get(name, _OTHERWISE):
                self.problems.append(f"{key} is {value!r:.80}, which gptx's GPT does not compute")

    def _note(self, problem: str | None) -> bool:
        self.problems += [problem] if problem else []
        return problem is not None


def _gpt2(
    fields: _Fields, shape: dict[str, Any], tensors: dict[str, StoredTensor]
) -> dict[str, Any]:
    if (heads := fields.size("attention.head_count_kv", shape["n_head"])) != shape["n_head"]:
        fields.problems.append(
            f"gpt2.attention.head_count_kv is {heads}, expected the {shape['n_head']} heads"
        )
    return {"norm_eps": fields.number("attention.layer_norm_epsilon", low=0.0)}


def _llama(
    fields: _Fields, shape: dict[str, Any], tensors: dict[str, StoredTensor]
) -> dict[str, Any]:
    head_dim = fields.size("attention.key_length", max(1, shape["n_embd"] // shape["n_head"]))
    for name in ("attention.value_length", "rope.dimension_count"):
        if (found := fields.size(name, head_dim)) != head_dim:
            fields.problems.append(f"llama.{name} is {found}, expected the head's {head_dim}")
    if experts := fields.get("expert_count"):
        fields.problems.append(
            f"it is a mixture of {experts!r:.80} experts, which gptx does not cover"
        )
    window = fields.get("attention.sliding_window") or 0
    if window and (problem := size_problem("llama.attention.sliding_window", window)):
        fields.problems.append(problem)
    elif (
        window and window < shape["n_ctx"]
    ):  # llama.cpp has none in this architecture, Mistral's class has one
        fields.problems.append(
            f"llama.attention.sliding_window is {window}, which llama.cpp does not compute here"
        )
    return {
        "n_kv_head": fields.size("attention.head_count_kv", shape["n_head"]),
        "head_dim": head_dim,
        "position": "rope",
        "rope_theta": fields.number("rope.freq_base", 10000.0),
        "rope_scaling": _rope_scaling(fields),
        "activation": "swiglu",
        "norm": "rmsnorm",
        "norm_eps": fields.number("attention.layer_norm_rms_epsilon", low=0.0),
        "attn_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
    }


def _rope_scaling(fields: _Fields) -> dict[str, Any] | None:
    """By llama.cpp's rule: linear where no type is named, by the factor under its new name or its old one; 0 means 1."""
    kind = fields.get("rope.scaling.type")
    old = fields.number("rope.scale_linear", 0.0, low=0.0)
    factor = fields.number("rope.scaling.factor", old, low=0.0)
    if kind not in (None, "none", "linear"):
        fields.problems.append(f"llama.rope.scaling.type is {kind!r:.80}, expected none or linear")
    return (
        {"rope_type": "linear", "factor": factor}
        if kind != "none" and factor not in (0.0, 1.0)
        else None
    )


def _with_rope_factors(
    config: GPTConfig, tensors: dict[str, StoredTensor], where: str
) -> GPTConfig:
    """Llama 3.1's scaling is stored as one factor a frequency, without the numbers it came from: they are tried."""
    if "rope_freqs.weight" not in tensors:
        return config
    stored = tensors["rope_freqs.weight"].values(where)
    if np.all(stored == 1.0):
        return config
    if config.rope_scaling is not None:
        raise CheckpointError(
            f"{where}: rope.scaling and rope_freqs.weight both scale, which gptx's GPT does not compute"
        )
    if stored.shape != (config.head_dim // 2,) or not np.all(np.isfinite(stored) & (stored > 0)):
        raise CheckpointError(
            f"{where}: rope_freqs.weight is no list of {config.head_dim // 2} positive factors"
        )
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
    raise CheckpointError(
        f"{where}: the factors in rope_freqs.weight are not those of Llama 3.1's scaling"
    )


def _frequencies(config: GPTConfig) -> np.ndarray[Any, Any]:
    """The angle of each rotary pair at position 1, at most 1 rad."""
    cos, sin = rope_tables(replace(config, n_ctx=2))
    return np.arctan2(sin[1].double().numpy(), cos[1].double().numpy())


def _tied(tensors: dict[str, StoredTensor]) -> bool:
    """No output.weight, or one that repeats token_embd.weight byte for byte (as older converters of GPT-2 wrote it)."""
    embedding, head = tensors.get("token_embd.weight"), tensors.get("output.weight")
    if head is None or embedding is None:
        return True
    return head.type == embedding.type and np.array_equal(head.data, embedding.data)


def _source(
    path: Path, tensors: dict[str, StoredTensor], config: GPTConfig, *, permuted: bool
) -> TensorSource:
    def read(name: str) -> Tensor:
        return torch.from_numpy(tensors[name].values(str(path)))

    def reorder_rows(name: str, value: Tensor) -> Tensor:
        part = re.search(r"\.attn_([qk])\.", name)
        if part and permuted:
            return to_halves(value, config.n_head if part[1] == "q" else config.n_kv_head)
        return value

    return TensorSource(
        str(path),
        {name: tensor.shape for name, tensor in tensors.items()},
        read,
        reorder_rows=reorder_rows,
    )
