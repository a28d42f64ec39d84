"""Hugging Face's config.json <-> GPTConfig: gpt2, openai-gpt, llama, and mistral (read only).

What a GPTConfig cannot say is refused by name, so that no model is ever computed wrongly in silence. Knows no weights.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal

from gptx.errors import CheckpointError
from gptx.head import Head, default_labels, read_head
from gptx_models.config import GPTConfig

Family = Literal["gpt2", "openai-gpt", "llama", "gptx"]
Obstacles = Callable[[GPTConfig], Iterator[str]]
COVERED = "gpt2, openai-gpt, llama, mistral and gptx"

_ACTIVATIONS = {  # Hugging Face's names
    "gpt2": {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu"},
    "openai-gpt": {"gelu": "gelu_tanh", "gelu_new": "gelu_tanh", "relu": "relu"},  # its "gelu" is the tanh form
    "llama": {"silu": "swiglu", "swish": "swiglu"},
}


def read_config(raw: dict[str, Any], where: str) -> GPTConfig:
    """The GPTConfig that a config.json means; `where` names the file in messages. Raises CheckpointError."""
    kind = raw.get("model_type")
    readers = {"gpt2": _gpt2, "openai-gpt": _openai, "llama": _llama, "mistral": _llama, "gptx": _gptx}
    if kind not in readers:
        raise CheckpointError(
            f"{where}: model_type is {kind!r}, which gptx's own GPT does not cover (it covers {COVERED}): "
            "export it with `gptx export --via optimum`"
        )
    fields = _Fields(raw, where)
    if raw.get("quantization_config"):
        fields.problems.append("the weights are quantized (quantization_config), expected fp32, fp16 or bf16 weights")
    values = readers[kind](fields) | _head(fields)
    if fields.problems:
        raise CheckpointError(f"{where}: {'; '.join(fields.problems)}")
    try:
        return GPTConfig.from_dict(values)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: {error}") from error


_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a name", dict: "an object"}


class _Fields:
    """A config.json whose problems are collected, to be told all at once."""

    def __init__(self, raw: dict[str, Any], where: str) -> None:
        self.raw, self.where = raw, where
        self.problems: list[str] = []

    def need(self, name: str) -> int:
        if self.raw.get(name) is None:
            self.problems.append(f"the field {name} is missing")
        return self.get(name, 1)

    def get(self, name: str, default: Any) -> Any:
        """A field's value, or `default` where it is absent or null; it must be of the default's type."""
        value = self.raw.get(name)
        if value is None:
            return default
        fits = isinstance(value, type(default)) or (isinstance(value, int) and isinstance(default, float))
        if not fits:
            self.problems.append(f"{name} is {value!r}, expected {_KINDS[type(default)]}")
        return value if fits else default

    def expect(self, name: str, expected: Any) -> None:
        """A field that GPT computes for one value only, which is also Hugging Face's default."""
        found = self.get(name, expected)
        if found != expected:
            self.problems.append(f"{name} is {found!r}, and gptx's GPT computes only {expected!r}")

    def activation(self, name: str, family: str, default: str) -> str:
        found, known = self.get(name, default), _ACTIVATIONS[family]
        if found not in known:
            self.problems.append(f"{name} is {found!r}, expected one of {', '.join(known)}")
        return known.get(found, "relu")


def _head(fields: _Fields) -> dict[str, Any]:
    """The number of classes of a ForSequenceClassification; nothing of a language model. Other heads are problems."""
    name = _architecture(fields.raw)
    if name.endswith(_CLASSIFIER):
        try:
            return {"n_class": len(read_head(fields.raw).labels)}
        except ValueError as error:
            fields.problems.append(str(error))
    elif re.search("For(?!CausalLM)[A-Z]", name):
        fields.problems.append(f"architectures names {name}, expected a language model or a {_CLASSIFIER}")
    return {}


def head_of(raw: dict[str, Any]) -> Head | None:
    """The classification head that a config.json describes, once read_config has taken it; None of a language model."""
    return read_head(raw) if raw.get("n_class") or _architecture(raw).endswith(_CLASSIFIER) else None


def _architecture(raw: dict[str, Any]) -> str:
    names = raw.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


_CLASSIFIER = "ForSequenceClassification"


def _gpt2(fields: _Fields) -> dict[str, Any]:
    fields.expect("scale_attn_weights", True)
    fields.expect("scale_attn_by_inverse_layer_idx", False)
    fields.expect("add_cross_attention", False)
    return _gpt2_shape(fields) | {
        "n_inner": fields.get("n_inner", 0),
        "activation": fields.activation("activation_function", "gpt2", "gelu_new"),
    }


def _openai(fields: _Fields) -> dict[str, Any]:
    return _gpt2_shape(fields) | {"norm_position": "post", "activation": fields.activation("afn", "openai-gpt", "gelu")}


def _gpt2_shape(fields: _Fields) -> dict[str, Any]:
    return {
        "vocab_size": fields.need("vocab_size"),
        "n_ctx": fields.get("n_positions", 0) or fields.need("n_ctx"),  # n_ctx: files of 2019
        "n_layer": fields.need("n_layer"),
        "n_head": fields.need("n_head"),
        "n_embd": fields.need("n_embd"),
        "norm_eps": fields.get("layer_norm_epsilon", 1e-5),
        "tied": fields.get("tie_word_embeddings", True),
        "dropout": fields.get("resid_pdrop", 0.1),
    }


def _llama(fields: _Fields) -> dict[str, Any]:
    fields.expect("partial_rotary_factor", 1.0)
    mistral = fields.raw["model_type"] == "mistral"
    n_ctx = fields.get("max_position_embeddings", 2048)
    window = fields.get("sliding_window", 0) if mistral else 0
    theta, scaling = _rope(fields)
    return {
        "vocab_size": fields.need("vocab_size"),
        "n_ctx": n_ctx,
        "n_layer": fields.need("num_hidden_layers"),
        "n_head": fields.need("num_attention_heads"),
        "n_kv_head": fields.get("num_key_value_heads", 0),
        "n_embd": fields.need("hidden_size"),
        "head_dim": fields.get("head_dim", 0),
        "n_inner": fields.need("intermediate_size"),
        "position": "rope",
        "rope_theta": float(theta),
        "rope_scaling": scaling,
        "window": window if 0 < window < n_ctx else None,
        "activation": fields.activation("hidden_act", "llama", "silu"),
        "norm": "rmsnorm",
        "norm_eps": fields.get("rms_norm_eps", 1e-6),
        "attn_bias": False if mistral else fields.get("attention_bias", False),
        "mlp_bias": False if mistral else fields.get("mlp_bias", False),
        "tied": fields.get("tie_word_embeddings", False),
        "dropout": fields.get("attention_dropout", 0.0),
    }


_ROPE_FIELDS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def _rope(fields: _Fields) -> tuple[float, dict[str, Any] | None]:
    """(theta, scaling): transformers 4 has rope_theta and rope_scaling, transformers 5 one rope_parameters."""
    given: dict[str, Any] = {**fields.get("rope_scaling", {}), **fields.get("rope_parameters", {})}
    theta = given.get("rope_theta") or fields.get("rope_theta", 10000.0)
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind not in _ROPE_FIELDS:
        fields.problems.append(f"rope_scaling is of type {kind!r}, expected one of {', '.join(_ROPE_FIELDS)}")
        return theta, None
    if given.get("partial_rotary_factor", 1.0) != 1.0:
        fields.problems.append(f"partial_rotary_factor is {given['partial_rotary_factor']!r}, expected 1.0")
    missing = [name for name in _ROPE_FIELDS[kind] if given.get(name) is None]
    if missing:
        fields.problems.append(f"rope_scaling of type {kind} lacks {', '.join(missing)}")
        return theta, None
    scaling = {"rope_type": kind, **{name: given[name] for name in _ROPE_FIELDS[kind]}}
    return theta, scaling if kind != "default" else None


def _gptx(fields: _Fields) -> dict[str, Any]:
    return {name: value for name, value in fields.raw.items() if name not in _NOT_GPTX}


_NOT_GPTX = (
    "model_type", "architectures", "bos_token_id", "eos_token_id", "pad_token_id", "id2label", "label2id", "problem_type",
)  # fmt: skip


def family_of(config: GPTConfig) -> Family:
    """The Hugging Face family that computes exactly what this configuration says, or gptx where none does."""
    families: dict[Family, Obstacles] = {"gpt2": _not_gpt2, "openai-gpt": _not_openai, "llama": _not_llama}
    for family, obstacles in families.items():
        if not any(obstacles(config)):
            return family
    return "gptx"


def why_gptx(config: GPTConfig) -> str:
    """What keeps this configuration from being the nearest Hugging Face family, in words; empty where nothing does."""
    if family_of(config) != "gptx":
        return ""
    nearest = _not_llama if config.position == "rope" else _not_openai if config.norm_position == "post" else _not_gpt2
    return ", ".join(nearest(config))


def _not_any(config: GPTConfig) -> Iterator[str]:
    if any(config.attention_of(layer) != "dot" for layer in range(config.n_layer)):
        yield "cosine or additive attention"
    if any(config.window_of(layer) is not None for layer in range(config.n_layer)):
        yield "a sliding window"
    if config.head_bias:
        yield "a bias in the head"


def _not_gpt2(config: GPTConfig) -> Iterator[str]:
    yield from _not_any(config)
    if config.position != "learned":
        yield f"positions of the kind {config.position}"
    if config.norm != "layernorm" or config.norm_position != "pre":
        yield f"{config.norm} in the {config.norm_position} position"
    if config.n_kv_head != config.n_head:
        yield "grouped-query attention"
    if config.head_dim * config.n_head != config.n_embd:
        yield "heads that do not divide the width"
    if config.activation == "swiglu":
        yield "swiglu without rope"


def _not_openai(config: GPTConfig) -> Iterator[str]:
    yield from _not_gpt2(dataclasses.replace(config, norm_position="pre"))
    if config.norm_position != "post":
        yield "norms before the layers"
    if config.activation == "gelu":
        yield "the exact gelu"
    if config.n_inner != 4 * config.n_embd:
        yield "a feed-forward that is not 4 times as wide"


def _not_llama(config: GPTConfig) -> Iterator[str]:
    yield from _not_any(config)
    if config.position != "rope":
        yield f"positions of the kind {config.position}"
    if config.norm != "rmsnorm" or config.norm_position != "pre":
        yield f"{config.norm} in the {config.norm_position} position"
    if config.activation != "swiglu":
        yield f"{config.activation} with rope"


def write_config(config: GPTConfig, family: Family, tokens: dict[str, Any], head: Head | None = None) -> dict[str, Any]:
    """The config.json of a family; `tokens` holds bos_token_id, eos_token_id and pad_token_id, each may be None.
    head: of a model with classes; without it they have transformers' own names."""
    described = _describe_head(head or Head(default_labels(config.n_class), pad=tokens.get("pad_token_id")))
    if family == "gptx":
        return {"model_type": "gptx", **config.to_dict(), **(described if config.n_class else {})}
    writer = {"gpt2": _write_gpt2, "openai-gpt": _write_openai, "llama": _write_llama}[family]
    common = {"vocab_size": config.vocab_size, "tie_word_embeddings": config.tied, "torch_dtype": "float32"}
    written = {"model_type": family, **writer(config), **common, **tokens}
    if config.n_class:
        written |= described
        written["architectures"] = [re.sub("LMHeadModel|ForCausalLM", _CLASSIFIER, written["architectures"][0])]
    return written


def _describe_head(head: Head) -> dict[str, Any]:
    """pad_token_id decides which token's logits count, so it is the head's own, not the tokenizer's."""
    return {
        "id2label": {str(at): name for at, name in enumerate(head.labels)},
        "label2id": {name: at for at, name in enumerate(head.labels)},
        "problem_type": head.problem_type,
        "pad_token_id": head.pad,
    }


def _write_gpt2(config: GPTConfig) -> dict[str, Any]:
    hf_name = {"gelu_tanh": "gelu_new", "gelu": "gelu", "relu": "relu"}[config.activation]
    return {
        "architectures": ["GPT2LMHeadModel"],
        **_write_gpt2_shape(config),
        "n_inner": config.n_inner,
        "activation_function": hf_name,
    }


def _write_openai(config: GPTConfig) -> dict[str, Any]:
    hf_name = {"gelu_tanh": "gelu", "relu": "relu"}[config.activation]
    return {"architectures": ["OpenAIGPTLMHeadModel"], **_write_gpt2_shape(config), "afn": hf_name}


def _write_gpt2_shape(config: GPTConfig) -> dict[str, Any]:
    return {
        "n_positions": config.n_ctx,
        "n_ctx": config.n_ctx,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "layer_norm_epsilon": config.norm_eps,
        "attn_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
    }


def _write_llama(config: GPTConfig) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": config.n_ctx,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head,
        "head_dim": config.head_dim,
        "hidden_size": config.n_embd,
        "intermediate_size": config.n_inner,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": config.rope_scaling,
        "attention_bias": config.attn_bias,
        "mlp_bias": config.mlp_bias,
        "attention_dropout": config.dropout,
    }
