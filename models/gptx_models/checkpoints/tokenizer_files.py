"""Read a tokenizer from a Hugging Face folder or a file, and check it against a vocabulary size.

Every form of a tokenizer is converted to a tokenizer.json that needs no other file. The files that
are written beside it agree with it. Knows nothing of weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from gptx.errors import CheckpointError
from gptx.text.chat_template import default_template
from gptx.text.tokenizer import vocabulary_problem
from gptx_models.checkpoints.read_files import read_json, read_text
from gptx_models.checkpoints.sentencepiece_model import read_sentencepiece_model
from gptx_models.checkpoints.special_tokens import TokenizerSettings
from gptx_models.checkpoints.tell import Tell, quiet
from gptx_models.checkpoints.tokenizer_classes import class_name
from gptx_models.checkpoints.tokenizer_parts import prefix_space
from gptx_models.checkpoints.tokenizer_settings import apply_settings
from gptx_models.checkpoints.vocab_and_merges import CONVERT_ADVICE, read_vocab_and_merges
from gptx_models.checkpoints.write_tokenizer import TEMPLATE, tokenizer_files

_SENTENCEPIECE = "tokenizer.model"
_SENTENCEPIECE_CLASSES = ("LlamaTokenizer", "CodeLlamaTokenizer")
_NAMED_TEMPLATES = "additional_chat_templates"  # a folder with NAME.jinja for each template
_UNREAD = ("spiece.model", "sentencepiece.bpe.model", "tekken.json", "vocab.txt")
# The usual texts of special tokens, for a tokenizer.json with no file beside it.
_USUAL_TOKENS = {
    "bos_token": ("<|endoftext|>", "<s>", "<bos>"),
    "eos_token": ("<|endoftext|>", "</s>", "<eos>"),
    "unk_token": ("<unk>",),
}


@dataclass
class TokenizerFiles:
    """A tokenizer as files.

    files: the text of each file by its name; empty if there is no tokenizer. generation: the ids of
    the tokenizer's own bos, eos and pad tokens, under generation_config.json's names.
    """

    files: dict[str, str] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)


def read_tokenizer_folder(
    folder: Path, vocab_size: int | None = None, *, tell: Tell = quiet
) -> TokenizerFiles:
    """The tokenizer in a Hugging Face folder, as transformers reads it; empty if there is none.

    vocab_size: the model's; added tokens beyond it are left out. `tell` is called with a line for
    each token and setting that is left out. Raises CheckpointError.
    """
    settings = TokenizerSettings(
        str(folder),
        config=_read_json(folder / "tokenizer_config.json"),
        special=_read_json(folder / "special_tokens_map.json"),
        added=_read_json(folder / "added_tokens.json"),
        model=_read_json(folder / "config.json"),
    )
    found = _read_any_form(folder, settings, tell)
    if found is None:
        return TokenizerFiles()
    text, tokenizer = found
    if not settings.config and not settings.special:
        settings.config = _guess_special_tokens(tokenizer)
    _tell_unsupported_settings(settings, tell)
    template = _read_template(folder, settings.config)
    return _with_settings(text, tokenizer, settings, vocab_size, tell, template)


def read_tokenizer_model(path: Path, *, tell: Tell = quiet) -> TokenizerFiles:
    """A SentencePiece tokenizer.model without other files, read as a LlamaTokenizer.

    Raises CheckpointError.
    """
    settings = TokenizerSettings(str(path), config={"tokenizer_class": "LlamaTokenizer"})
    text, tokenizer = read_sentencepiece_model(path, settings.config, tell)
    return _with_settings(text, tokenizer, settings, None, tell)


def read_tokenizer_json(path: Path) -> TokenizerFiles:
    """A tokenizer.json without other files. Raises CheckpointError."""
    text, tokenizer = _open_tokenizer_json(path)
    config = {
        **_guess_special_tokens(tokenizer),
        "add_prefix_space": prefix_space(tokenizer),
    }
    return _with_settings(text, tokenizer, TokenizerSettings(str(path), config=config), None, quiet)


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a tokenizer.json, without truncation and padding. Raises CheckpointError.

    A tokenizer.json that was saved by a data pipeline may have truncation or padding switched on.
    transformers switches both off before each call.
    """
    _, tokenizer = _open_tokenizer_json(path)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def check_vocabulary(tokenizer: Path, vocab_size: int, *, shown_as: object = None) -> int:
    """The highest id that a tokenizer.json knows, plus one.

    vocab_size: the model's. shown_as: what messages call the tokenizer, by default its path. Raises
    CheckpointError if two tokens have one id, or one is beyond the model's vocabulary.
    """
    inner = load_tokenizer(tokenizer)
    if problem := vocabulary_problem(inner, tokenizer_vocab_size=None, vocab_size=vocab_size):
        raise CheckpointError(f"the tokenizer of {shown_as or tokenizer} {problem}")
    return max(inner.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def _read_any_form(
    folder: Path, settings: TokenizerSettings, tell: Tell
) -> tuple[str, Tokenizer] | None:
    """(tokenizer.json's text, the tokenizer) of the first form that a folder has, else None."""
    if (folder / "tokenizer.json").exists():
        return _open_tokenizer_json(folder / "tokenizer.json")
    if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        settings.from_merges = True
        name = class_name(settings.config, settings.model)
        return read_vocab_and_merges(folder, name, settings.config)
    if (folder / _SENTENCEPIECE).exists():
        _check_sentencepiece_class(folder, settings)
        return read_sentencepiece_model(folder / _SENTENCEPIECE, settings.config, tell)
    for name in _UNREAD:
        if (folder / name).exists():
            tell(f"{folder} has {name} and no tokenizer.json: {CONVERT_ADVICE}")
    return None


def _with_settings(
    text: str,
    tokenizer: Tokenizer,
    settings: TokenizerSettings,
    vocab_size: int | None,
    tell: Tell,
    template: str | None = None,
) -> TokenizerFiles:
    """The files of a tokenizer after the settings beside it were applied."""
    applied = apply_settings(text, tokenizer, settings, vocab_size, tell)
    return TokenizerFiles(
        tokenizer_files(applied, tokenizer, settings.config, template),
        _token_ids(tokenizer, applied.special),
    )


def _check_sentencepiece_class(folder: Path, settings: TokenizerSettings) -> None:
    """Refuse other classes than Llama's: each converts a SentencePiece model in its own way."""
    name = class_name(settings.config, settings.model) or ""
    if name not in _SENTENCEPIECE_CLASSES:
        raise CheckpointError(
            f"{folder} has {_SENTENCEPIECE} and no tokenizer.json, and gptx reads that of a"
            f" LlamaTokenizer, not of {name or 'a class that no file names'}: {CONVERT_ADVICE}"
        )


def _open_tokenizer_json(path: Path) -> tuple[str, Tokenizer]:
    """(its text, the tokenizer). Raises CheckpointError."""
    raw = read_json(path)  # read first: its errors name faults of the file itself
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
                f"{path} gives the added token {token['content']!r:.80} the id {token['id']}, and"
                f" it can only have {given}, behind the"
                f" {tokenizer.get_vocab_size(with_added_tokens=False)} tokens of the vocabulary"
            )
    return text, tokenizer


def _read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; {} if there is no such file."""
    return read_json(path) if path.exists() else {}


def _tell_unsupported_settings(settings: TokenizerSettings, tell: Tell) -> None:
    """Name the settings that transformers obeys and gptx does not."""
    if settings.config.get("clean_up_tokenization_spaces") is True:
        tell(
            f"{settings.where}: clean_up_tokenization_spaces is true, with which transformers takes"
            " the spaces before punctuation out of decoded text: gptx shows the text as the model"
            " wrote it"
        )
    if settings.config.get("auto_map"):
        tell(
            f"{settings.where}: tokenizer_config.json names code of its own (auto_map): gptx reads"
            " tokenizer.json alone"
        )


def _guess_special_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """The special tokens by role of a tokenizer with no file beside it, by their usual texts."""
    found: dict[str, str] = {}
    for role, texts in _USUAL_TOKENS.items():
        known = (text for text in texts if tokenizer.token_to_id(text) is not None)
        if (text := next(known, None)) is not None:
            found[role] = text
    return found


def _token_ids(tokenizer: Tokenizer, special: Mapping[str, Any]) -> dict[str, Any]:
    """bos_token_id, eos_token_id and pad_token_id of the special tokens."""
    ids = {
        f"{role}_token_id": tokenizer.token_to_id(special[f"{role}_token"])
        for role in ("bos", "eos", "pad")
        if f"{role}_token" in special
    }
    return {name: token_id for name, token_id in ids.items() if token_id is not None}


def _read_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The chat template of a folder, or None.

    A template in a file wins over the one in tokenizer_config.json. Of several named templates, the
    one called default is taken.
    """
    named = {file.stem: file for file in sorted((folder / _NAMED_TEMPLATES).glob("*.jinja"))}
    if (folder / TEMPLATE).exists():
        named.setdefault("default", folder / TEMPLATE)
    if named:
        return read_text(named["default"]) if "default" in named else None
    template = config.get("chat_template")
    if isinstance(template, dict):  # a template for each name
        template = template.get("default")
    try:
        return default_template(template)
    except ValueError as error:
        raise CheckpointError(f"{folder / 'tokenizer_config.json'}: {error}") from error
