"""The classification head in config.json: its number of classes, and its fields.

The class name in `architectures` says whether the model is a language model or a classifier.
"""

from __future__ import annotations

import re
from typing import Any

from gptx.artifact.class_head import Head, read_head
from gptx_models.checkpoints.config_fields import ConfigFields

_CLASSIFIER = "ForSequenceClassification"


def read_n_class(fields: ConfigFields) -> dict[str, Any]:
    """The field n_class of a classifier's GPTConfig; empty for a language model.

    A head for another task is added to the problems of `fields`.
    """
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
    """The classification head that a config.json describes, or None for a language model.

    `raw` must have passed read_config; otherwise read_head may raise ValueError.
    """
    is_classifier = raw.get("n_class") or _architecture(raw).endswith(_CLASSIFIER)
    return read_head(raw) if is_classifier else None


def write_head(head: Head) -> dict[str, Any]:
    """The fields of config.json that describe a head.

    pad_token_id is the head's own and not the tokenizer's: it decides which token's logits count.
    """
    return {
        "id2label": {str(at): name for at, name in enumerate(head.labels)},
        "label2id": {name: at for at, name in enumerate(head.labels)},
        "problem_type": head.problem_type,
        "pad_token_id": head.pad,
    }


def classifier_class(language_model: str) -> str:
    """transformers' classifier beside a language model: GPT2LMHeadModel -> GPT2For..."""
    return re.sub("LMHeadModel|ForCausalLM", _CLASSIFIER, language_model)


def _architecture(raw: dict[str, Any]) -> str:
    names = raw.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""
