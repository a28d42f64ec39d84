"""The tokenizer classes of transformers 4.57: their default special tokens and own settings.

The values are the defaults in each class's __init__. If a class has a slow and a Fast version, they
are those of the Fast version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class TokenizerClass:
    """The defaults of a class for settings that a tokenizer's files leave out.

    special_tokens: by role (bos_token, ...), for roles that no file names. additional: additional
    special tokens. adds_bos: the default of add_bos_token; None if the class ignores that setting.
    bert: the class sets do_lower_case, strip_accents and tokenize_chinese_chars in the normalizer.
    """

    special_tokens: Mapping[str, str] = field(default_factory=dict)
    additional: tuple[str, ...] = ()
    adds_bos: bool | None = None
    bert: bool = False


def _roles(
    bos: str | None, eos: str | None, unk: str | None, pad: str | None = None
) -> dict[str, str]:
    tokens = {"bos_token": bos, "eos_token": eos, "unk_token": unk, "pad_token": pad}
    return {role: token for role, token in tokens.items() if token is not None}


_END = "<|endoftext|>"
_CODE_LLAMA_INFILL = ("▁<PRE>", "▁<MID>", "▁<SUF>", "▁<EOT>")
_BERT = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")}
_ROBERTA = {
    **_roles("<s>", "</s>", "<unk>", "<pad>"),
    "sep_token": "</s>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}
CLASSES: dict[str, TokenizerClass] = {
    "LlamaTokenizer": TokenizerClass(_roles("<s>", "</s>", "<unk>"), adds_bos=True),
    "CodeLlamaTokenizer": TokenizerClass(
        _roles("<s>", "</s>", "<unk>"), _CODE_LLAMA_INFILL, adds_bos=True
    ),
    "GemmaTokenizer": TokenizerClass(_roles("<bos>", "<eos>", "<unk>", "<pad>"), adds_bos=True),
    "CohereTokenizer": TokenizerClass(
        _roles("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", "<UNK>"), adds_bos=True
    ),
    "GPTNeoXTokenizer": TokenizerClass(_roles(_END, _END, _END), adds_bos=False),
    "GPT2Tokenizer": TokenizerClass(_roles(_END, _END, _END)),
    "CodeGenTokenizer": TokenizerClass(_roles(_END, _END, _END)),
    "Qwen2Tokenizer": TokenizerClass(_roles(None, _END, _END, _END)),
    "BloomTokenizer": TokenizerClass(_roles("<s>", "</s>", "<unk>", "<pad>")),
    "OpenAIGPTTokenizer": TokenizerClass(_roles(None, None, "<unk>")),
    "WhisperTokenizer": TokenizerClass(_roles(_END, _END, _END)),
    "RobertaTokenizer": TokenizerClass(_ROBERTA),
    "BartTokenizer": TokenizerClass(_ROBERTA),
    "XLMRobertaTokenizer": TokenizerClass(_ROBERTA),
    "BertTokenizer": TokenizerClass(_BERT, bert=True),
    "DistilBertTokenizer": TokenizerClass(_BERT, bert=True),
    "ElectraTokenizer": TokenizerClass(_BERT, bert=True),
}
# Classes without own defaults. TokenizersBackend is PreTrainedTokenizerFast in transformers 5.
_GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")
_CLASS_OF_MODEL_TYPE = {  # if no file names a class
    "llama": "LlamaTokenizer",
    "mistral": "LlamaTokenizer",
    "gpt2": "GPT2Tokenizer",
    "openai-gpt": "OpenAIGPTTokenizer",
}


def class_name(tokenizer_config: Mapping[str, Any], config: Mapping[str, Any]) -> str | None:
    """The class that the files name, else the one of the model's type; without "Fast" at its end.

    tokenizer_config: tokenizer_config.json, which comes first. config: config.json.
    """
    for fields in (tokenizer_config, config):
        name = fields.get("tokenizer_class")
        if isinstance(name, str) and name:
            return _GENERIC[0] if name in _GENERIC else name.removesuffix("Fast")
    return _CLASS_OF_MODEL_TYPE.get(str(config.get("model_type")))


def default_tokens(class_name: str | None) -> Mapping[str, str]:
    """The special tokens by role that a class has if no file names others."""
    return CLASSES[class_name].special_tokens if class_name in CLASSES else {}
