"""config.json of Hugging Face's gpt2, openai-gpt, llama and mistral, or of gptx -> GPTConfig.

A field that a GPTConfig cannot express is an error that names the field; otherwise the model would
be computed wrongly and nobody would notice. Knows no weights.
"""

from __future__ import annotations

from typing import Any

from gptx.errors import CheckpointError
from gptx_models.checkpoints.config_fields import ConfigFields
from gptx_models.checkpoints.head_fields import read_n_class
from gptx_models.checkpoints.unsupported_fields import note_unsupported_fields
from gptx_models.gpt.config import ROPE_FIELDS, GPTConfig, number_problem, rope_problems

# transformers' names of activations -> ours
_GPT2_ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "relu": "relu",
}
# OpenAIGPTModel's "gelu" is the tanh approximation.
_OPENAI_ACTIVATIONS = {"gelu": "gelu_tanh", "gelu_new": "gelu_tanh", "relu": "relu"}
_LLAMA_ACTIVATIONS = {"silu": "swiglu", "swish": "swiglu"}
# Fields of a gptx config.json that are not fields of GPTConfig.
_NOT_GPT_CONFIG = (
    "model_type",
    "architectures",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "id2label",
    "label2id",
    "problem_type",
)
_DEFAULT_THETA = 10000.0  # transformers' default rope_theta


def read_config(raw: dict[str, Any], where: str) -> GPTConfig:
    """The GPTConfig of a parsed config.json. `where` names the file in messages.

    Raises CheckpointError that names every problem.
    """
    kind = raw.get("model_type")
    readers = {
        "gpt2": _gpt2,
        "openai-gpt": _openai_gpt,
        "llama": _llama,
        "mistral": _llama,
        "gptx": _gptx,
    }
    if not isinstance(kind, str) or kind not in readers:
        *names, last = readers
        raise CheckpointError(
            f"{where}: model_type is {kind!r:.80}, which gptx's own GPT does not cover (it covers "
            f"{', '.join(names)} and {last}): export it with `gptx export --via optimum`"
        )
    fields = ConfigFields(raw)
    note_unsupported_fields(fields)
    values = readers[kind](fields) | read_n_class(fields)
    if fields.problems:
        raise CheckpointError(f"{where}: {'; '.join(fields.problems)}")
    try:
        return GPTConfig.from_dict(values)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: {error}") from error


def _gptx(fields: ConfigFields) -> dict[str, Any]:
    return {name: value for name, value in fields.raw.items() if name not in _NOT_GPT_CONFIG}


def _gpt2(fields: ConfigFields) -> dict[str, Any]:
    fields.expect("scale_attn_weights", True, null_is_default=False)
    fields.expect("scale_attn_by_inverse_layer_idx", False)
    return _gpt2_shape(fields) | {
        "n_inner": fields.size("n_inner", 0),
        "activation": fields.choice("activation_function", "gelu_new", _GPT2_ACTIVATIONS),
    }


def _openai_gpt(fields: ConfigFields) -> dict[str, Any]:
    return _gpt2_shape(fields) | {
        "norm_position": "post",
        "activation": fields.choice("afn", "gelu", _OPENAI_ACTIVATIONS),
    }


def _gpt2_shape(fields: ConfigFields) -> dict[str, Any]:
    """The fields that gpt2 and openai-gpt share.

    transformers reads their newer names (num_hidden_layers, ...) as well.
    """
    if (window := fields.raw.get("sliding_window")) is not None:
        fields.problems.append(f"sliding_window is {window!r:.80}, and this family has none")
    return {
        "vocab_size": fields.required_size("vocab_size"),
        "n_ctx": _gpt2_context(fields),
        "n_layer": fields.required_size("n_layer", "num_hidden_layers"),
        "n_head": fields.required_size("n_head", "num_attention_heads"),
        "n_embd": fields.required_size("n_embd", "hidden_size"),
        "norm_eps": fields.number("layer_norm_epsilon", 1e-5),
        "tied": fields.get("tie_word_embeddings", True),
        "dropout": fields.number("resid_pdrop", 0.1, high=1.0),
    }


def _gpt2_context(fields: ConfigFields) -> int:
    """The context in tokens. Files of 2019 call it n_ctx."""
    names = ("n_positions", "max_position_embeddings")
    if any(fields.raw.get(name) is not None for name in names):
        return fields.required_size(*names)
    return fields.required_size("n_ctx")


def _llama(fields: ConfigFields) -> dict[str, Any]:
    mistral = fields.raw["model_type"] == "mistral"
    n_ctx = fields.size("max_position_embeddings", 131072 if mistral else 2048)
    n_layer = fields.required_size("num_hidden_layers")
    theta, scaling = _rope(fields)
    if mistral:
        fields.expect("attention_bias", False)
        fields.expect("mlp_bias", False)
    return {
        "vocab_size": fields.required_size("vocab_size"),
        "n_ctx": n_ctx,
        "n_layer": n_layer,
        "n_head": fields.required_size("num_attention_heads"),
        "n_kv_head": _n_kv_head(fields, mistral=mistral),
        "n_embd": fields.required_size("hidden_size"),
        "head_dim": fields.size("head_dim", 0),
        "n_inner": fields.required_size("intermediate_size"),
        "position": "rope",
        "rope_theta": theta,
        "rope_scaling": scaling,
        "window": _window(fields, n_ctx, n_layer, mistral=mistral),
        "activation": fields.choice("hidden_act", "silu", _LLAMA_ACTIVATIONS),
        "norm": "rmsnorm",
        "norm_eps": fields.number("rms_norm_eps", 1e-6),
        "attn_bias": fields.get("attention_bias", False),
        "mlp_bias": fields.get("mlp_bias", False),
        "tied": fields.get("tie_word_embeddings", False),
        "dropout": fields.number("attention_dropout", 0.0, high=1.0),
    }


def _n_kv_head(fields: ConfigFields, *, mistral: bool) -> int:
    """The number of key and value heads; 0 means as many as there are heads.

    Null means 0 in both families. An absent field means 0 in llama, and 8 in mistral.
    """
    absent = "num_key_value_heads" not in fields.raw
    return fields.size("num_key_value_heads", 8 if mistral and absent else 0)


def _window(
    fields: ConfigFields, n_ctx: int, n_layer: int, *, mistral: bool
) -> int | None | list[int | None]:
    """The sliding window in tokens: for all layers, for each layer, or None.

    If sliding_window is absent, it is 4096 in mistral; null means no window. mistral's layer_types
    says which layers have the window. A window in a llama config is a problem: the attention of
    transformers' Llama ignores it, and only its cache obeys it.
    """
    absent = "sliding_window" not in fields.raw
    window = fields.size("sliding_window", 4096 if mistral and absent else 0)
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
    if kinds is None:
        return window
    return [window if kind == "sliding_attention" else None for kind in kinds]


def _rope(fields: ConfigFields) -> tuple[float, dict[str, Any] | None]:
    """(rope_theta, scaling or None) of rotary positions.

    transformers 4 writes rope_theta and rope_scaling, transformers 5 both in rope_parameters.
    """
    given: dict[str, Any] = {**fields.get("rope_scaling", {}), **fields.get("rope_parameters", {})}
    theta = _rope_theta(fields, given)
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
        return theta, None
    if problems := list(rope_problems(given)):
        fields.problems += problems
        return theta, None
    kind = given.get("rope_type") or given["type"]
    scaling = {"rope_type": kind, **{name: given[name] for name in ROPE_FIELDS[kind]}}
    return theta, scaling if kind != "default" else None


def _rope_theta(fields: ConfigFields, given: dict[str, Any]) -> float:
    """rope_theta of the rope's own fields (`given`) or of config.json; they must agree."""
    thetas = [
        place["rope_theta"] for place in (given, fields.raw) if place.get("rope_theta") is not None
    ]
    theta = thetas[0] if thetas else _DEFAULT_THETA
    if problem := number_problem("rope_theta", theta):
        fields.problems.append(problem)
        theta = _DEFAULT_THETA
    if len(thetas) == 2 and thetas[0] != thetas[1]:
        fields.problems.append(
            f"rope_theta is {thetas[1]!r:.80}, and {thetas[0]!r:.80} in rope_scaling or"
            " rope_parameters: expected one value"
        )
    return float(theta)
