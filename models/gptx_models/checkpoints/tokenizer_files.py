"""The tokenizer's files of a checkpoint: tokenizer.json, its configuration, the special tokens, the chat template.

Reads them from a folder (Hugging Face's older forms too) into files that agree with each other, makes them for a
tokenizer that an importer built, and checks one against a model's vocabulary. Knows nothing of weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from gptx.errors import CheckpointError
from gptx.text.chat_template import default_template
from gptx.text.tokenizer import ADDITIONAL, SPECIAL, vocabulary_problem
from gptx_models.checkpoints.read_files import read_json, read_text
from gptx_models.checkpoints.sentencepiece_model import read_sentencepiece_model
from gptx_models.checkpoints.tokenizer_overlay import (
    CLASSES,
    Beside,
    Laid,
    Tell,
    bos_eos_processor,
    class_name,
    lay_over,
    prefix_space,
)

NAMES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
TEMPLATE = "chat_template.jinja"
SENTENCEPIECE = "tokenizer.model"
TEMPLATES = "additional_chat_templates"  # a folder, with a .jinja file for each named template


@dataclass
class TokenizerFiles:
    """The text of each file by its name (none: no tokenizer), and the token ids that the tokenizer itself names."""

    files: dict[str, str] = field(default_factory=dict)
    generation: dict[str, Any] = field(
        default_factory=dict
    )  # bos_token_id, eos_token_id, pad_token_id


def companions(
    tokenizer: Tokenizer,
    *,
    tokenizer_class: str,
    special: dict[str, str],
    add_bos: bool = False,
    add_eos: bool = False,
    chat_template: str | None = None,
    model_max_length: int | None = None,
) -> dict[str, str]:
    """The files of a tokenizer that has only been built. `special` names the bos, eos, unk and pad tokens there are."""
    named: dict[str, Any] = {f"{name}_token": token for name, token in special.items()}
    usual = CLASSES[tokenizer_class].tokens if tokenizer_class in CLASSES else {}
    config: dict[str, Any] = {
        "tokenizer_class": tokenizer_class,
        "add_bos_token": add_bos,
        "add_eos_token": add_eos,
        **({"model_max_length": model_max_length} if model_max_length else {}),
        **({"add_prefix_space": True} if prefix_space(tokenizer) else {}),
        "clean_up_tokenization_spaces": False,
        **dict.fromkeys(usual),  # null: the class's own token is not one of this tokenizer
        **named,
    }
    files = {
        "tokenizer.json": tokenizer.to_str(pretty=False),
        "special_tokens_map.json": _text(named),
    }
    if chat_template:
        config["chat_template"] = chat_template
        files["chat_template.jinja"] = chat_template
    return {**files, "tokenizer_config.json": _text(config)}


def _text(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def with_bos_eos(tokenizer: Tokenizer, bos: str | None, eos: str | None) -> None:
    """Make `tokenizer` put these tokens before and after a text."""
    if bos is not None or eos is not None:
        tokenizer.post_processor = bos_eos_processor(tokenizer, bos, eos)


def quiet(line: str) -> None:
    """The Tell of a call that wants no lines."""


def read_tokenizer_folder(
    folder: Path, vocab_size: int | None = None, *, tell: Tell = quiet
) -> TokenizerFiles:
    """The tokenizer in a Hugging Face folder, as transformers reads it; empty where there is none.

    vocab_size: of the model; added tokens beyond it are left out. `tell` is given a line for each thing that is left
    out or cannot be carried. Raises CheckpointError.
    """
    beside = Beside(
        str(folder),
        config=_json(folder / "tokenizer_config.json"),
        special=_json(folder / "special_tokens_map.json"),
        added=_json(folder / "added_tokens.json"),
        model=_json(folder / "config.json"),
    )
    if (folder / "tokenizer.json").exists():
        text, tokenizer = _read(folder / "tokenizer.json")
    elif (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        text, tokenizer = _of_vocab_and_merges(folder, class_name(beside), beside.config)
        beside.merges = True
    elif (folder / SENTENCEPIECE).exists():
        _check_sentencepiece_class(folder, beside)
        text, tokenizer = read_sentencepiece_model(folder / SENTENCEPIECE, beside.config, tell)
    else:
        for name in _UNREAD:
            if (folder / name).exists():
                tell(f"{folder} has {name} and no tokenizer.json: {_CONVERT}")
        return TokenizerFiles()
    if not beside.config and not beside.special:
        beside.config = _guess(tokenizer)
    laid = lay_over(text, tokenizer, beside, vocab_size, tell)
    _tell_what_is_left(beside, tell)
    template = _template(folder, beside.config)
    return TokenizerFiles(
        _written(laid, tokenizer, beside.config, template), _ids(tokenizer, laid.special)
    )


_CONVERT = (
    "transformers makes one, with AutoTokenizer.from_pretrained(IN).save_pretrained(OUT);"
    " then give it with --tokenizer OUT"
)
_UNREAD = ("spiece.model", "sentencepiece.bpe.model", "tekken.json", "vocab.txt")


def _check_sentencepiece_class(folder: Path, beside: Beside) -> None:
    """Classes differ in what they make of a SentencePiece model, and one of them is read here."""
    name = class_name(beside) or ""
    if name not in ("LlamaTokenizer", "CodeLlamaTokenizer"):
        raise CheckpointError(
            f"{folder} has {SENTENCEPIECE} and no tokenizer.json, and gptx reads that of a LlamaTokenizer, not of"
            f" {name or 'a class that no file names'}: {_CONVERT}"
        )


def read_tokenizer_model(path: Path, *, tell: Tell = quiet) -> TokenizerFiles:
    """A SentencePiece model that stands alone, read as a LlamaTokenizer's. Raises CheckpointError."""
    beside = Beside(str(path), config={"tokenizer_class": "LlamaTokenizer"})
    text, tokenizer = read_sentencepiece_model(path, beside.config, tell)
    laid = lay_over(text, tokenizer, beside, None, tell)
    return TokenizerFiles(
        _written(laid, tokenizer, beside.config, None), _ids(tokenizer, laid.special)
    )


def read_tokenizer_json(path: Path) -> TokenizerFiles:
    """A tokenizer.json that stands alone. Raises CheckpointError."""
    text, tokenizer = _read(path)
    beside = Beside(
        str(path), config={**_guess(tokenizer), "add_prefix_space": prefix_space(tokenizer)}
    )
    laid = lay_over(text, tokenizer, beside, None, quiet)
    return TokenizerFiles(
        _written(laid, tokenizer, beside.config, None), _ids(tokenizer, laid.special)
    )


def load_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer.json, without the truncation and padding that a data pipeline may have left switched on: transformers
    switches both off before each call. Raises CheckpointError."""
    tokenizer = _read(path)[1]
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _read(path: Path) -> tuple[str, Tokenizer]:
    """(its text, itself) of a tokenizer.json."""
    raw = read_json(path)  # says what is wrong with the file itself
    text = read_text(path)
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(
            f"{path} is not a tokenizer.json that `tokenizers` can read: {error}"
        ) from error
    for token in raw.get("added_tokens") or []:
        given = tokenizer.token_to_id(token["content"])
        if given != token["id"] and given is not None:
            raise CheckpointError(
                f"{path} gives the added token {token['content']!r:.80} the id {token['id']}, and it can only have"
                f" {given}, behind the {tokenizer.get_vocab_size(with_added_tokens=False)} tokens of the vocabulary"
            )
    return text, tokenizer


def _json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def check_vocabulary(tokenizer: Path, vocab_size: int, *, shown_as: object = None) -> int:
    """How many ids a tokenizer.json knows, the highest and one. Raises CheckpointError where two tokens have one id, or
    one is beyond the model's vocabulary."""
    inner = load_tokenizer(tokenizer)
    if problem := vocabulary_problem(inner, tokenizer_vocab_size=None, vocab_size=vocab_size):
        raise CheckpointError(f"the tokenizer of {shown_as or tokenizer} {problem}")
    return max(inner.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def _written(
    laid: Laid, tokenizer: Tokenizer, config: Mapping[str, Any], template: str | None
) -> dict[str, str]:
    """The files, which agree: each setting that tokenizer.json holds by now is left out of tokenizer_config.json, or
    says the same there."""
    name = laid.class_name or _class(tokenizer)
    named = {role: laid.special[role] for role in (*SPECIAL, ADDITIONAL) if role in laid.special}
    usual = CLASSES[name].tokens if name in CLASSES else {}
    none = {
        role: None for role in usual if role not in named
    }  # else transformers takes the class's own
    dropped = (*_DROPPED, *laid.settings, *SPECIAL, ADDITIONAL)
    kept = {key: value for key, value in config.items() if key not in dropped}
    settings = dict(laid.settings)
    if prefix_space(tokenizer) is not None and name != "LlamaTokenizer":
        settings["add_prefix_space"] = prefix_space(tokenizer)
    if isinstance(
        kept.get("extra_special_tokens"), list
    ):  # as transformers 5 writes additional_special_tokens
        del kept["extra_special_tokens"]
    elif extra := kept.get("extra_special_tokens"):
        kept["extra_special_tokens"] = {
            role: laid.special[role] for role in extra if role in laid.special
        }
    written = {**kept, "tokenizer_class": name, **settings, **none, **named}
    files = {"tokenizer.json": laid.text, "special_tokens_map.json": _text(named)}
    if template:
        written["chat_template"] = template
        files[TEMPLATE] = template
    return {**files, "tokenizer_config.json": _text(written)}


# what has gone into tokenizer.json, is written anew, or names files and code that are not there
_DROPPED = (
    "added_tokens_decoder", "chat_template", "auto_map", "name_or_path", "special_tokens_map_file", "tokenizer_file",
    "from_slow", "init_inputs", "add_prefix_space", "tokenizer_class",
)  # fmt: skip


def _tell_what_is_left(beside: Beside, tell: Tell) -> None:
    """Name the settings that transformers obeys and gptx cannot."""
    if beside.config.get("clean_up_tokenization_spaces") is True:
        tell(
            f"{beside.where}: clean_up_tokenization_spaces is true, with which transformers takes the spaces before"
            " punctuation out of decoded text: gptx shows the text as the model wrote it"
        )
    if beside.config.get("auto_map"):
        tell(
            f"{beside.where}: tokenizer_config.json names code of its own (auto_map): gptx reads tokenizer.json alone"
        )


def _class(tokenizer: Tokenizer) -> str:
    """The name by which Hugging Face and onnxruntime-genai know this kind of tokenizer."""
    model = tokenizer.model
    if isinstance(model, models.BPE) and model.end_of_word_suffix == "</w>":
        return "OpenAIGPTTokenizer"
    if isinstance(model, models.BPE) and isinstance(tokenizer.decoder, decoders.ByteLevel):
        return "GPT2Tokenizer"
    return "PreTrainedTokenizerFast"


def _guess(tokenizer: Tokenizer) -> dict[str, str]:
    """The special tokens of a tokenizer that nothing else describes, by the names that everybody gives them."""
    usual = {
        "bos": ("<|endoftext|>", "<s>", "<bos>"),
        "eos": ("<|endoftext|>", "</s>", "<eos>"),
        "unk": ("<unk>",),
    }
    found = {
        f"{role}_token": next(
            (token for token in tokens if tokenizer.token_to_id(token) is not None), None
        )
        for role, tokens in usual.items()
    }
    return {role: token for role, token in found.items() if token is not None}


def _ids(tokenizer: Tokenizer, special: Mapping[str, Any]) -> dict[str, Any]:
    """bos_token_id, eos_token_id and pad_token_id of the special tokens."""
    found = {
        role: tokenizer.token_to_id(special[f"{role}_token"])
        for role in ("bos", "eos", "pad")
        if f"{role}_token" in special
    }
    return {f"{role}_token_id": token for role, token in found.items() if token is not None}


def _template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The chat template: the files' before tokenizer_config.json's; of several, the one called default."""
    named = {file.stem: file for file in sorted((folder / TEMPLATES).glob("*.jinja"))}
    if (folder / TEMPLATE).exists():
        named.setdefault("default", folder / TEMPLATE)
    if named:
        return read_text(named["default"]) if "default" in named else None
    template = config.get("chat_template")
    if isinstance(template, dict):  # which transformers takes too
        template = template.get("default")
    try:
        return default_template(template)
    except ValueError as error:
        raise CheckpointError(f"{folder / 'tokenizer_config.json'}: {error}") from error


_OF_MERGES = (
    "GPT2Tokenizer",
    "CodeGenTokenizer",
    "Qwen2Tokenizer",
    "OpenAIGPTTokenizer",
    "PreTrainedTokenizerFast",
)
_QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _of_vocab_and_merges(
    folder: Path, name: str | None, config: Mapping[str, Any]
) -> tuple[str, Tokenizer]:
    """(tokenizer.json, the tokenizer) of vocab.json and merges.txt, as transformers converts them.

    They are those of GPT-2 (byte-level), of Qwen2 (byte-level, with a pattern of its own that cuts words) or of GPT-1
    (lower case, words end in </w>). name: of the class. config: tokenizer_config.json. Raises CheckpointError.
    """
    if config.get("tokenizer_class") and name not in _OF_MERGES:
        raise CheckpointError(
            f"{folder} has vocab.json and merges.txt and no tokenizer.json, and gptx reads those of"
            f" {', '.join(_OF_MERGES)}, not of {name}: {_CONVERT}"
        )
    vocab = read_json(folder / "vocab.json")
    first_gpt = any(token.endswith("</w>") for token in vocab)
    lines = read_text(folder / "merges.txt").split("\n")
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    options: dict[str, Any] = {"end_of_word_suffix": "</w>"} if first_gpt else {}
    if first_gpt and "<unk>" in vocab:
        options["unk_token"] = "<unk>"
    empty = Tokenizer(models.BPE(**options))
    if first_gpt:
        empty.normalizer = normalizers.BertNormalizer(lowercase=True)
        empty.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        empty.decoder = decoders.BPEDecoder(suffix="</w>")
    else:
        empty.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        if name == "Qwen2Tokenizer":
            space = config.get("add_prefix_space") is True
            cut = pre_tokenizers.Split(Regex(_QWEN2), "isolated")
            bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=space, use_regex=False)
            empty.normalizer, empty.pre_tokenizer = (
                normalizers.NFC(),
                pre_tokenizers.Sequence([cut, bytes_]),
            )
        empty.decoder = decoders.ByteLevel()
        empty.post_processor = processors.ByteLevel(trim_offsets=False)
    shape = json.loads(empty.to_str())
    text = json.dumps(
        {**shape, "model": {**shape["model"], "vocab": vocab, "merges": merges}}, ensure_ascii=False
    )
    try:
        return text, Tokenizer.from_str(text)
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"{folder}: merges.txt does not fit vocab.json: {error}") from error
