"""vocab.json and merges.txt, the older form of a BPE tokenizer, read as transformers converts them.

Three kinds are read: GPT-2's (byte-level), Qwen2's (byte-level, with another regular expression to
cut a text into words) and GPT-1's (lower case, a word's last token ends in </w>).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from gptx.errors import CheckpointError
from gptx_models.checkpoints.read_files import read_json, read_text

CONVERT_ADVICE = (
    "transformers makes one, with AutoTokenizer.from_pretrained(IN).save_pretrained(OUT);"
    " then give it with --tokenizer OUT"
)
_CLASSES = (
    "GPT2Tokenizer",
    "CodeGenTokenizer",
    "Qwen2Tokenizer",
    "OpenAIGPTTokenizer",
    "PreTrainedTokenizerFast",
)
_QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def read_vocab_and_merges(
    folder: Path, class_name: str | None, config: Mapping[str, Any]
) -> tuple[str, Tokenizer]:
    """(the text of tokenizer.json, the tokenizer).

    config: tokenizer_config.json. Raises CheckpointError for another class than the three kinds,
    and for merges that do not fit the vocabulary.
    """
    if config.get("tokenizer_class") and class_name not in _CLASSES:
        raise CheckpointError(
            f"{folder} has vocab.json and merges.txt and no tokenizer.json, and gptx reads those of"
            f" {', '.join(_CLASSES)}, not of {class_name}: {CONVERT_ADVICE}"
        )
    vocab = read_json(folder / "vocab.json")
    lines = read_text(folder / "merges.txt").split("\n")
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    if any(token.endswith("</w>") for token in vocab):
        empty = _empty_gpt1("<unk>" if "<unk>" in vocab else None)
    elif class_name == "Qwen2Tokenizer":
        empty = _empty_qwen2(add_prefix_space=config.get("add_prefix_space") is True)
    else:
        empty = _empty_gpt2()
    raw = json.loads(empty.to_str())
    raw["model"] |= {"vocab": vocab, "merges": merges}
    text = json.dumps(raw, ensure_ascii=False)
    try:
        return text, Tokenizer.from_str(text)
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"{folder}: merges.txt does not fit vocab.json: {error}") from error


def _empty_gpt1(unknown: str | None) -> Tokenizer:
    options: dict[str, Any] = {} if unknown is None else {"unk_token": unknown}
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", **options))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    return tokenizer


def _empty_gpt2() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def _empty_qwen2(*, add_prefix_space: bool) -> Tokenizer:
    tokenizer = _empty_gpt2()
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=False),
        ]
    )
    return tokenizer
