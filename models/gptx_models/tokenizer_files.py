"""The tokenizer's files of a checkpoint: tokenizer.json, its configuration, the special tokens, the chat template.

Reads them from a folder (Hugging Face's older vocab.json + merges.txt too), makes them for a tokenizer that an
importer built, and checks one against a model's vocabulary. Knows nothing of weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from gptx.errors import CheckpointError
from gptx.json_files import parse_json
from gptx_models.tensor_files import read_json

NAMES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


@dataclass
class TokenizerFiles:
    """The text of each file by its name (none: no tokenizer), and the token ids that generation needs."""

    files: dict[str, str] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)  # bos_token_id, eos_token_id, pad_token_id


def companions(
    tokenizer: Tokenizer,
    *,
    tokenizer_class: str,
    special: dict[str, str],
    add_bos: bool = False,
    add_eos: bool = False,
    chat_template: str | None = None,
) -> dict[str, str]:
    """The files of a tokenizer that has only been built. `special` names the bos, eos, unk and pad tokens there are."""
    named = {f"{name}_token": token for name, token in special.items()}
    config: dict[str, Any] = {
        "tokenizer_class": tokenizer_class,
        "add_bos_token": add_bos,
        "add_eos_token": add_eos,
        "clean_up_tokenization_spaces": False,
        **named,
    }
    files = {"tokenizer.json": tokenizer.to_str(pretty=False), "special_tokens_map.json": _text(named)}
    if chat_template:
        config["chat_template"] = chat_template
        files["chat_template.jinja"] = chat_template
    return {**files, "tokenizer_config.json": _text(config)}


def _text(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def with_bos_eos(tokenizer: Tokenizer, bos: str | None, eos: str | None) -> None:
    """Make `tokenizer` put these tokens before and after a text."""
    named = {token for token in (bos, eos) if token is not None}
    if not named:
        return
    template = [part for part in (bos, "$A", eos) if part is not None]
    second = [part.replace("$A", "$B") + ":1" for part in template]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template,
        pair=[*template, *second],
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in named],
    )


def read_tokenizer_folder(folder: Path) -> TokenizerFiles:
    """The tokenizer in a Hugging Face folder; empty where there is none. Raises CheckpointError."""
    if (folder / "tokenizer.json").exists():
        files = {name: (folder / name).read_text("utf-8") for name in NAMES if (folder / name).exists()}
        tokenizer = load_tokenizer(folder / "tokenizer.json")
    elif (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        tokenizer = _of_vocab_and_merges(folder)
        files = {"tokenizer.json": tokenizer.to_str(pretty=False)}
        files |= {name: (folder / name).read_text("utf-8") for name in NAMES[1:] if (folder / name).exists()}
    else:
        return TokenizerFiles()
    if "tokenizer_config.json" not in files:
        files = {**companions(tokenizer, tokenizer_class=_class(tokenizer), special=_guess(tokenizer)), **files}
    config = parse_json(files["tokenizer_config.json"], str(folder / "tokenizer_config.json"), CheckpointError)
    template = _template(config)
    if template and "chat_template.jinja" not in files:
        files["chat_template.jinja"] = template
    return TokenizerFiles(files, _ids(tokenizer, config))


def read_tokenizer_json(path: Path) -> TokenizerFiles:
    """A tokenizer.json that stands alone. Raises CheckpointError."""
    tokenizer = load_tokenizer(path)
    special = _guess(tokenizer)
    files = companions(tokenizer, tokenizer_class=_class(tokenizer), special=special)
    return TokenizerFiles(
        {**files, "tokenizer.json": path.read_text("utf-8")},
        _ids(tokenizer, json.loads(files["tokenizer_config.json"])),
    )


def load_tokenizer(path: Path) -> Tokenizer:
    read_json(path)  # says what is wrong with the file itself
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"{path} is not a tokenizer.json that `tokenizers` can read: {error}") from error


def check_vocabulary(tokenizer: Path, vocab_size: int, *, shown_as: object = None) -> int:
    """How many ids a tokenizer.json knows. Raises CheckpointError where one is beyond the model's vocabulary."""
    vocab = load_tokenizer(tokenizer).get_vocab(with_added_tokens=True)
    known = max(vocab.values(), default=-1) + 1
    if known > vocab_size:
        raise CheckpointError(
            f"the tokenizer of {shown_as or tokenizer} has token ids up to {known - 1:,}, and the model's vocabulary "
            f"has {vocab_size:,} tokens: this is the tokenizer of another model"
        )
    return known


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
    usual = {"bos": ("<|endoftext|>", "<s>", "<bos>"), "eos": ("<|endoftext|>", "</s>", "<eos>"), "unk": ("<unk>",)}
    found = {
        role: next((token for token in tokens if tokenizer.token_to_id(token) is not None), None)
        for role, tokens in usual.items()
    }
    return {role: token for role, token in found.items() if token is not None}


def _ids(tokenizer: Tokenizer, config: dict[str, Any]) -> dict[str, Any]:
    """bos_token_id, eos_token_id and pad_token_id of what a tokenizer_config.json names."""
    ids = {}
    for role in ("bos", "eos", "pad"):
        token = config.get(f"{role}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if token is not None and tokenizer.token_to_id(token) is not None:
            ids[f"{role}_token_id"] = tokenizer.token_to_id(token)
    return ids


def _template(config: dict[str, Any]) -> str | None:
    """tokenizer_config.json's chat template; where it has several, the one called default."""
    template = config.get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template


def _of_vocab_and_merges(folder: Path) -> Tokenizer:
    """vocab.json and merges.txt of GPT-2 (byte-level) or GPT-1 (lower case, words end in </w>)."""
    vocab = read_json(folder / "vocab.json")
    first_gpt = any(token.endswith("</w>") for token in vocab)
    lines = (folder / "merges.txt").read_text("utf-8").split("\n")
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    options: dict[str, Any] = {"end_of_word_suffix": "</w>"} if first_gpt else {}
    if first_gpt and "<unk>" in vocab:
        options["unk_token"] = "<unk>"
    try:
        bpe = models.BPE(vocab, merges, **options)
    except Exception as error:
        raise CheckpointError(f"{folder}: merges.txt does not fit vocab.json: {error}") from error
    tokenizer = Tokenizer(bpe)
    if first_gpt:
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    special = [token for token in ("<|endoftext|>", "<unk>") if token in vocab]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    if (folder / "added_tokens.json").exists():
        added = sorted(read_json(folder / "added_tokens.json").items(), key=lambda item: item[1])
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token, _ in added])
    return tokenizer
