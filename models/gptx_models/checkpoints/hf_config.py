"""Hugging Face's config.json <-> GPTConfig: gpt2, openai-gpt, llama, and mistral (read only).

What a GPTConfig cannot say is refused by name, so that no model is ever computed wrongly in silence. Knows no weights.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal

from gptx.artifact.bounds import size_problem
from gptx.artifact.class_head import Head, default_labels, read_head
from gptx.errors import CheckpointError
from gptx_models.gpt.config import ROPE_FIELDS, GPTConfig, number_problem, rope_problems

Family = Literal["gpt2", "openai-gpt", "llama", "gptx"]
Obstacles = Callable[[GPTConfig], Iterator[str]]
COVERED = "gpt2, openai-gpt, llama, mistral and gptx"

_ACTIVATIONS = {  # Hugging Face's names
    "gpt2": {
        **dict.fromkeys(
            ("gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh", "gelu_python_tanh"),
            "gelu_tanh",
        ),
        **dict.fromkeys(("gelu", "gelu_python"), "gelu"),
        "relu": "relu",
    },
    "openai-gpt": {
        "gelu": "gelu_tanh",
        "gelu_new": "gelu_tanh",
        "relu": "relu",
    },  # its "gelu" is the tanh form
    "llama": {"silu": "swiglu", "swish": "swiglu"},
}


def read_config(raw: dict[str, Any], where: str) -> GPTConfig:
    """The GPTConfig that a config.json means; `where` names the file in messages. Raises CheckpointError."""
    kind = raw.get("model_type")
    readers = {
        "gpt2": _gpt2,
        "openai-gpt": _openai,
        "llama": _llama,
        "mistral": _llama,
        "gptx": _gptx,
    }
    if not isinstance(kind, str) or kind not in readers:
        raise CheckpointError(
            f"{where}: model_type is {kind!r:.80}, which gptx's own GPT does not cover (it covers {COVERED}): "
            "export it with `gptx export --via optimum`"
        )
    fields = _Fields(raw, where)
    _refuse(fields)
    values = readers[kind](fields) | _head(fields)
    if fields.problems:
        raise CheckpointError(f"{where}: {'; '.join(fields.problems)}")
    try:
        return GPTConfig.from_dict(values)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: {error}") from error


# Fields that change what is computed, in one of the classes that we read or in one like it (Granite, Gemma, Cohere,
# MiniCPM, Qwen, Llama 4), and that our GPT does not compute. transformers reads most of them in their own classes only,
# but where one stands in a file with a value other than these, whoever wrote it computes something else.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        (
            "is_encoder_decoder",
            "add_cross_attention",
            "use_bidirectional_attention",
            "alibi",
            "rope_interleaved",
        ),
        (False,),
    ),
    **dict.fromkeys(("parallel_attn", "use_parallel_residual", "parallel_residual"), (False,)),
    **dict.fromkeys(
        ("use_qk_norm", "qk_norm", "qk_layernorm", "use_mrope", "use_sliding_window"), (False,)
    ),
    "is_causal": (True,),
    "pruned_heads": ({},),
    **dict.fromkeys(
        ("attention_multiplier", "query_pre_attn_scalar", "attention_chunk_size", "clip_qkv"), ()
    ),
    **dict.fromkeys(("final_logit_softcapping", "attn_logit_softcapping", "logits_soft_cap"), ()),
    **dict.fromkeys(
        ("no_rope_layers", "no_rope_layer_interval", "mup_width_scale", "kv_lora_rank"), ()
    ),
    **dict.fromkeys(
        ("logits_scaling", "logit_scale", "residual_multiplier", "embedding_multiplier"), (1,)
    ),
    **dict.fromkeys(("scale_emb", "scale_depth", "rotary_pct", "partial_rotary_factor"), (1,)),
    **dict.fromkeys(
        ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), (0, 1)
    ),
}
_QUANTIZED = ("quantization_config", "compression_config", "quantization")


def _refuse(fields: _Fields) -> None:
    """Note a problem for each field that asks for what our GPT does not compute, whatever the family."""
    for name in _QUANTIZED:
        if fields.raw.get(name):
            fields.problems.append(
                f"the weights are quantized ({name}), expected fp32, fp16 or bf16 weights"
            )
    for name, neutral in _NEUTRAL.items():
        found = fields.raw.get(name)
        if found is not None and found not in neutral:
            fields.problems.append(f"{name} is {found!r:.80}, which gptx's GPT does not compute")


_KINDS = {bool: "true or false", int: "a whole number", str: "a name", dict: "an object"}


class _Fields:
    """A config.json whose problems are collected, to be told all at once."""

    def __init__(self, raw: dict[str, Any], where: str) -> None:
        self.raw, self.where = raw, where
        self.problems: list[str] = []

    def need(self, name: str, also: str = "") -> int:
        """A size that must be there, under its name or under `also`."""
        names = [each for each in (name, also) if self.raw.get(each) is not None]
        if not names:
            self.problems.append(f"the field {name} is missing")
        values = [self.size(each, 1) for each in names]
        if len(set(values)) > 1:
            self.problems.append(
                f"{name} is {values[0]} and {also} is {values[1]}, which are names of one field"
            )
        return values[0] if values else 1

    def get(self, name: str, default: Any) -> Any:
        """A field's value, or `default` where it is absent or null; it must be of the default's type."""
        value = self.raw.get(name)
        if value is None:
            return default
        fits = isinstance(value, type(default)) and (
            isinstance(default, bool) or not isinstance(value, bool)
        )
        if not fits:
            self.problems.append(f"{name} is {value!r:.80}, expected {_KINDS[type(default)]}")
        return value if fits else default

    def size(self, name: str, default: int) -> int:
        """A whole number above 0, or `default`, which may be 0, where the field is absent or null."""
        value = self.raw.get(name)
        problem = size_problem(name, value) if value is not None else None
        return default if value is None or self._note(problem) else value

    def number(self, name: str, default: float, *, high: float | None = None) -> float:
        """A number of at least 0, or `default` where the field is absent or null."""
        value = self.raw.get(name)
        problem = number_problem(name, value, low=0.0, high=high) if value is not None else None
        return default if value is None or self._note(problem) else float(value)

    def _note(self, problem: str | None) -> bool:
        self.problems += [problem] if problem else []
        return problem is not None

    def expect(self, name: str, expected: bool, *, null: bool = True) -> None:
        """A switch that GPT computes for one value only, which is also Hugging Face's default. null: whether a null is
        that value, too; for transformers it is false."""
        found = (
            None
            if not null and name in self.raw and self.raw[name] is None
            else self.get(name, expected)
        )
        if found != expected:
            self.problems.append(
                f"{name} is {found!r:.80}, and gptx's GPT computes only {expected!r}"
            )

    def activation(self, name: str, family: str, default: str) -> str:
        found, known = self.get(name, default), _ACTIVATIONS[family]
        if found not in known:
            self.problems.append(f"{name} is {found!r:.80}, expected one of {', '.join(known)}")
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
        fields.problems.append(
            f"architectures names {name}, expected a language model or a {_CLASSIFIER}"
        )
    return {}


def head_of(raw: dict[str, Any]) -> Head | None:
    """The classification head that a config.json describes, once read_config has taken it; None of a language model."""
    return (
        read_head(raw) if raw.get("n_class") or _architecture(raw).endswith(_CLASSIFIER) else None
    )


def _architecture(raw: dict[str, Any]) -> str:
    names = raw.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


_CLASSIFIER = "ForSequenceClassification"


def _gpt2(fields: _Fields) -> dict[str, Any]:
    fields.expect("scale_attn_weights", True, null=False)
    fields.expect("scale_attn_by_inverse_layer_idx", False)
    return _gpt2_shape(fields) | {
        "n_inner": fields.size("n_inner", 0),
        "activation": fields.activation("activation_function", "gpt2", "gelu_new"),
    }


def _openai(fields: _Fields) -> dict[str, Any]:
    return _gpt2_shape(fields) | {
        "norm_position": "post",
        "activation": fields.activation("afn", "openai-gpt", "gelu"),
    }


def _gpt2_shape(fields: _Fields) -> dict[str, Any]:
    """transformers takes the newer classes' names of these fields too."""
    if (window := fields.raw.get("sliding_window")) is not None:
        fields.problems.append(f"sliding_window is {window!r:.80}, and this family has none")
    named = any(
        fields.raw.get(name) is not None for name in ("n_positions", "max_position_embeddings")
    )
    return {
        "vocab_size": fields.need("vocab_size"),
        # n_ctx: files of 2019
        "n_ctx": fields.need("n_positions", "max_position_embeddings")
        if named
        else fields.need("n_ctx"),
        "n_layer": fields.need("n_layer", "num_hidden_layers"),
        "n_head": fields.need("n_head", "num_attention_heads"),
        "n_embd": fields.need("n_embd", "hidden_size"),
        "norm_eps": fields.number("layer_norm_epsilon", 1e-5),
        "tied": fields.get("tie_word_embeddings", True),
        "dropout": fields.number("resid_pdrop", 0.1, high=1.0),
    }


def _llama(fields: _Fields) -> dict[str, Any]:
    mistral = fields.raw["model_type"] == "mistral"
    n_ctx = fields.size("max_position_embeddings", 131072 if mistral else 2048)
    n_layer = fields.need("num_hidden_layers")
    window = _window(fields, n_ctx, n_layer, mistral=mistral)
    theta, scaling = _rope(fields)
    # null is as many as there are heads; where the field is absent, Mistral's class has its own default
    n_kv_head = fields.size(
        "num_key_value_heads", 8 if mistral and "num_key_value_heads" not in fields.raw else 0
    )
    if mistral:
        fields.expect("attention_bias", False)
        fields.expect("mlp_bias", False)
    return {
        "vocab_size": fields.need("vocab_size"),
        "n_ctx": n_ctx,
        "n_layer": n_layer,
        "n_head": fields.need("num_attention_heads"),
        "n_kv_head": n_kv_head,
        "n_embd": fields.need("hidden_size"),
        "head_dim": fields.size("head_dim", 0),
        "n_inner": fields.need("intermediate_size"),
        "position": "rope",
        "rope_theta": theta,
        "rope_scaling": scaling,
        "window": window,
        "activation": fields.activation("hidden_act", "llama", "silu"),
        "norm": "rmsnorm",
        "norm_eps": fields.number("rms_norm_eps", 1e-6),
        "attn_bias": fields.get("attention_bias", False),
        "mlp_bias": fields.get("mlp_bias", False),
        "tied": fields.get("tie_word_embeddings", False),
        "dropout": fields.number("attention_dropout", 0.0, high=1.0),
    }


def _window(
    fields: _Fields, n_ctx: int, n_layer: int, *, mistral: bool
) -> int | None | list[int | None]:
    """Mistral's class has a window of 4096 where the field is absent, and none where it is null; its layer_types say which
    layers have it. Llama's class has no window, though the cache of transformers obeys one there."""
    window = fields.size(
        "sliding_window", 4096 if mistral and "sliding_window" not in fields.raw else 0
    )
    kinds = fields.raw.get("layer_types")
    known = ("full_attention", "sliding_attention") if mistral and window else ("full_attention",)
    if kinds is not None and not (isinstance(kinds, list) and all(kind in known for kind in kinds)):
        fields.problems.append(
            f"layer_types is {kinds!r:.80}, expected a list of {' and '.join(known)}"
        )
    elif kinds is not None and len(kinds) != n_layer:
        fields.problems.append(f"layer_types names {len(kinds)} layers of {n_layer}")
    elif window and not mistral and window < n_ctx:
        fields.problems.append(f"sliding_window is {window}, which a llama does not have")
    if not 0 < window < n_ctx:
        return None
    return (
        window
        if kinds is None
        else [window if kind == "sliding_attention" else None for kind in kinds]
    )


def _rope(fields: _Fields) -> tuple[float, dict[str, Any] | None]:
    """(theta, scaling): transformers 4 has rope_theta and rope_scaling, transformers 5 one rope_parameters."""
    given: dict[str, Any] = {**fields.get("rope_scaling", {}), **fields.get("rope_parameters", {})}
    thetas = [
        place["rope_theta"] for place in (given, fields.raw) if place.get("rope_theta") is not None
    ]
    theta = thetas[0] if thetas else 10000.0
    if problem := number_problem("rope_theta", theta):
        fields.problems.append(problem)
        theta = 10000.0
    if len(thetas) == 2 and thetas[0] != thetas[1]:
        fields.problems.append(
            f"rope_theta is {thetas[1]!r:.80}, and {thetas[0]!r:.80} among the rope's own fields"
        )
    if given.get("partial_rotary_factor", 1) != 1:
        fields.problems.append(
            f"partial_rotary_factor is {given['partial_rotary_factor']!r:.80}, expected 1.0"
        )
    given = {
        name: value
        for name, value in given.items()
        if name not in ("rope_theta", "partial_rotary_factor")
    }
    if not given:
        return float(theta), None
    if problems := list(rope_problems(given)):
        fields.problems += problems
        return float(theta), None
    kind = given.get("rope_type") or given["type"]
    scaling = {"rope_type": kind, **{name: given[name] for name in ROPE_FIELDS[kind]}}
    return float(theta), scaling if kind != "default" else None


def _gptx(fields: _Fields) -> dict[str, Any]:
    return {name: value for name, value in fields.raw.items() if name not in _NOT_GPTX}


_NOT_GPTX = (
    "model_type", "architectures", "bos_token_id", "eos_token_id", "pad_token_id", "id2label", "label2id", "problem_type",
)  # fmt: skip


def family_of(config: GPTConfig) -> Family:
    """The Hugging Face family that computes exactly what this configuration says, or gptx where none does."""
    families: dict[Family, Obstacles] = {
        "gpt2": _not_gpt2,
        "openai-gpt": _not_openai,
        "llama": _not_llama,
    }
    for family, obstacles in families.items():
        if not any(obstacles(config)):
            return family
    return "gptx"


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


def write_config(
    config: GPTConfig, family: Family, tokens: dict[str, Any], head: Head | None = None
) -> dict[str, Any]:
    """The config.json of a family; `tokens` holds bos_token_id, eos_token_id and pad_token_id, each may be None.
    head: of a model with classes; without it they have transformers' own names."""
    described = _describe_head(
        head or Head(default_labels(config.n_class), pad=tokens.get("pad_token_id"))
    )
    if family == "gptx":
        return {"model_type": "gptx", **config.to_dict(), **(described if config.n_class else {})}
    writer = {"gpt2": _write_gpt2, "openai-gpt": _write_openai, "llama": _write_llama}[family]
    common = {
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tied,
        "torch_dtype": "float32",
    }
    written = {"model_type": family, **writer(config), **common, **tokens}
    if config.n_class:
        written |= described
        written["architectures"] = [
            re.sub("LMHeadModel|ForCausalLM", _CLASSIFIER, written["architectures"][0])
        ]
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
