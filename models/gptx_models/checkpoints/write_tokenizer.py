"""The texts of a checkpoint's tokenizer files, made so that the files agree with each other.

tokenizer.json, tokenizer_config.json, special_tokens_map.json and chat_template.jinja.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer, decoders, models

from gptx.text.tokenizer import ADDITIONAL, SPECIAL
from gptx_models.checkpoints.tokenizer_classes import default_tokens
from gptx_models.checkpoints.tokenizer_parts import prefix_space
from gptx_models.checkpoints.tokenizer_settings import AppliedSettings

TEMPLATE = "chat_template.jinja"
# Fields of tokenizer_config.json that are not kept: they are in tokenizer.json, are written anew,
# or name files and code that the checkpoint does not have.
_DROPPED = (
    "added_tokens_decoder",
    "chat_template",
    "auto_map",
    "name_or_path",
    "special_tokens_map_file",
    "tokenizer_file",
    "from_slow",
    "init_inputs",
    "add_prefix_space",
    "tokenizer_class",
)


def new_tokenizer_files(
    tokenizer: Tokenizer,
    *,
    tokenizer_class: str,
    special: dict[str, str],
    add_bos: bool = False,
    add_eos: bool = False,
    chat_template: str | None = None,
    model_max_length: int | None = None,
) -> dict[str, str]:
    """The files of a tokenizer that was built here: text by file name.

    special: the special tokens by the names bos, eos, unk and pad. model_max_length: the model's
    context in tokens.
    """
    named: dict[str, Any] = {f"{name}_token": token for name, token in special.items()}
    config: dict[str, Any] = {
        "tokenizer_class": tokenizer_class,
        "add_bos_token": add_bos,
        "add_eos_token": add_eos,
        **({"model_max_length": model_max_length} if model_max_length else {}),
        **({"add_prefix_space": True} if prefix_space(tokenizer) else {}),
        "clean_up_tokenization_spaces": False,
        # null, not absent: for an absent role transformers adds the class's default token
        **dict.fromkeys(default_tokens(tokenizer_class)),
        **named,
    }
    return _files(tokenizer.to_str(pretty=False), config, named, chat_template)


def tokenizer_files(
    applied: AppliedSettings, tokenizer: Tokenizer, config: Mapping[str, Any], template: str | None
) -> dict[str, str]:
    """The files of a tokenizer that was read: text by file name.

    config: its tokenizer_config.json. apply_settings has moved some settings into tokenizer.json.
    The new tokenizer_config.json leaves them out, or has the same values.
    """
    name = applied.class_name or _guess_class(tokenizer)
    special = applied.special
    named = {role: special[role] for role in (*SPECIAL, ADDITIONAL) if role in special}
    settings = dict(applied.class_settings)
    if prefix_space(tokenizer) is not None and name != "LlamaTokenizer":
        settings["add_prefix_space"] = prefix_space(tokenizer)
    written = {
        **_kept_fields(config, applied),
        "tokenizer_class": name,
        **settings,
        # null, not absent: for an absent role transformers adds the class's default token
        **{role: None for role in default_tokens(name) if role not in named},
        **named,
    }
    return _files(applied.tokenizer_json, written, named, template)


def _kept_fields(config: Mapping[str, Any], applied: AppliedSettings) -> dict[str, Any]:
    """The fields of tokenizer_config.json that are kept as they are."""
    dropped = (*_DROPPED, *applied.class_settings, *SPECIAL, ADDITIONAL)
    kept = {key: value for key, value in config.items() if key not in dropped}
    extra = kept.get("extra_special_tokens")
    if isinstance(extra, list):  # transformers 5's name of additional_special_tokens
        del kept["extra_special_tokens"]
    elif extra:
        kept["extra_special_tokens"] = {
            role: applied.special[role] for role in extra if role in applied.special
        }
    return kept


def _files(
    tokenizer_json: str, config: dict[str, Any], special: dict[str, Any], template: str | None
) -> dict[str, str]:
    files = {"tokenizer.json": tokenizer_json, "special_tokens_map.json": _json_text(special)}
    if template:
        config = {**config, "chat_template": template}
        files[TEMPLATE] = template
    return {**files, "tokenizer_config.json": _json_text(config)}


def _json_text(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _guess_class(tokenizer: Tokenizer) -> str:
    """The class by which transformers and onnxruntime-genai know this kind of tokenizer."""
    model = tokenizer.model
    if isinstance(model, models.BPE) and model.end_of_word_suffix == "</w>":
        return "OpenAIGPTTokenizer"
    if isinstance(model, models.BPE) and isinstance(tokenizer.decoder, decoders.ByteLevel):
        return "GPT2Tokenizer"
    return "PreTrainedTokenizerFast"
